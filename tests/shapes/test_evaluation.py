"""The paper's tables on the demo world: the exact teacher, the shipped student, and the runs to be compared."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.errors import UserError
from training.evaluate.prompt_set import Prompt
from training.evaluate.recipe import load_recipe
from training.shapes import detector, evaluation, teacher, weights
from training.shapes.measurement import kept
from training.shapes.world import ITEMS


@pytest.fixture(scope="module")
def exact() -> evaluation.ExactTeacher:
    return evaluation.ExactTeacher(teacher.World(), teacher.scheduler(), evaluation.shipped_autoencoder())


def prompts(text: str, count: int) -> list[Prompt]:
    return [Prompt(f"{number:05d}", text) for number in range(count)]


def test_the_exact_teacher_shows_what_the_caption_says(exact):
    pictures = exact.paint(prompts("a small red circle on a gray background", 8), 1.0)
    assert all(kept(reading, "a small red circle on a gray background") for reading in detector.read(pictures))
    with pytest.raises(UserError, match="`a red dog` is no caption of the demo world"):
        exact.paint(prompts("a red dog", 1), 1.0)


def test_the_exact_teacher_without_guidance_draws_every_color_and_guidance_does_not_leave_the_caption(exact):
    readings = detector.read(exact.paint(prompts("a colored circle", 40), 1.0))
    assert {reading.color for reading in readings} == {"red", "green", "blue", "yellow"}
    assert all(reading.shape == "circle" for reading in detector.read(exact.paint(prompts("a colored circle", 8), 4.0)))


def test_the_shipped_autoencoder_is_that_of_the_checkpoint():
    """Its names are put back, so that it reads what it was trained to write."""
    vae = evaluation.shipped_autoencoder()
    drawn = evaluation.autoencoder.decode(vae, teacher.World().latents[:16])
    readings = detector.read(drawn)
    assert [(one.shape, one.color) for one in readings] == [(item.shape, item.color) for item in ITEMS[:16]]


def test_the_reference_is_every_picture_of_the_world(tmp_path):
    evaluation.write_reference(tmp_path / "reference")
    assert len(list((tmp_path / "reference").glob("*.png"))) == 480 == len(ITEMS)


def test_training_without_the_demos_teacher_names_what_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="There is no .*teacher; run `make demo-model` first"):
        evaluation.train_cells(tmp_path)


def test_the_cells_are_changes_that_the_config_knows_and_differ_in_one_thing(tmp_path):
    made = {}
    for cell, changes in evaluation.CELLS.items():
        made[cell] = evaluation.configuration.load(weights.CONFIG, str(tmp_path), list(changes))
    assert {cell: (made[cell].cfg_on, made[cell].lora.updates, bool(made[cell].nasa)) for cell in made} == {
        "none": ("none", 2, False), "teacher": ("teacher", 2, False), "lora": ("lora", 2, False),
        "both": ("both", 2, False), "two_time_scale": ("none", 5, False), "nasa_t": ("both", 2, True),
    }  # fmt: skip


def test_the_shipped_student_is_drawn_and_scored_by_the_recipes(tmp_path, monkeypatch):
    """Six pictures a pair, from the committed weights to the table."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    folder = evaluation.student_folder(tmp_path / "student")
    assert evaluation.student_folder(folder) == folder and (folder / "unet").is_dir()
    recipe = evaluation.recipe_of("shapes_table7", tmp_path).only(["nothing", "nasa_1.3"])
    recipe = replace(recipe, prompts=recipe.prompts.model_copy(update={"each": 6}))
    evaluation.draw_all(recipe, Path("out"))
    text = evaluation.score_all(recipe, Path("out"), tmp_path)
    found = json.loads(Path("out/nasa_1.3/result.json").read_text())["scores"]["removal"]
    assert "| nothing | 48 |" in text and found["n"] + found["more"]["undecided"] == 48
    plain = json.loads(Path("out/nothing/result.json").read_text())["scores"]["removal"]
    assert plain["value"] < found["value"] and found["value"] > 0.8, "a trained model: NASA removes"


def test_every_world_recipe_finds_its_models_in_the_folder(tmp_path):
    for name in ("shapes_table1", "shapes_table7", "shapes_harm", "shapes_table2_seed1"):
        recipe = evaluation.recipe_of(name, tmp_path)
        assert all(model.path.startswith(str(tmp_path)) for model in recipe.models.values())
        assert not any("SEED" in model.path for model in recipe.models.values())
    assert [f"kappa_{kappa:g}" for kappa in evaluation.KAPPAS] == list(load_recipe("shapes_table1").variants)
