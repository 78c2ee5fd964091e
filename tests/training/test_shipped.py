"""The trainer's own files from any folder, and what a fresh checkout is told of files that a command makes."""

from pathlib import Path

import pytest

from training.distill import distill
from training.errors import UserError
from training.networks.backbones.sources import check_source, load_part
from training.prompts.read import read_prompts
from training.recipe import config
from training.recipe.shipped import shipped
from training.run.plan import report

CONFIGS = Path(config.__file__).parents[1] / "configs"
NAMES = sorted(path.relative_to(CONFIGS.parent.parent).as_posix() for path in CONFIGS.glob("**/*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_and_its_prompts_from_another_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = config.load(name)
    assert loaded == config.load(CONFIGS.parent.parent / name)
    if "demo-model" not in loaded.prompts:
        assert read_prompts(loaded.prompts)
    if loaded.nasa:
        assert read_prompts(loaded.nasa.prompts)


def test_the_users_own_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Path("training/configs/prompts.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine\n")
    assert read_prompts("training/configs/prompts.txt") == ["mine"]
    assert shipped("training/configs/negative_prompts.txt") == CONFIGS / "negative_prompts.txt"


@pytest.mark.parametrize(
    "name", ["configs/prompts.txt", "training", "training/no.yaml", "my/training/configs/prompts.txt"]
)
def test_any_other_path_is_left_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped(name) == Path(name)


def test_what_make_demo_model_makes_is_told_to_be_made_by_it(tmp_path, monkeypatch):
    """Prompts, teacher and a part of a teacher that a stopped `make demo-model` left out; by whatever path."""
    monkeypatch.chdir(tmp_path)
    shapes = config.load("training/configs/shapes.yaml")
    for path in (shapes.prompts, str(tmp_path / shapes.prompts)):
        with pytest.raises(UserError, match="Cannot read the prompt file .*prompts.txt: .*run `make demo-model` first"):
            read_prompts(path)
    with pytest.raises(UserError, match="There is no teacher build/demo-model/teacher; .*run `make demo-model` first"):
        check_source(shapes.teacher)
    Path(shapes.teacher, "vae").mkdir(parents=True)
    with pytest.raises(UserError, match="has no folder unet/.*run `make demo-model` first"):
        load_part(None, shapes.teacher, "unet")
    with pytest.raises(UserError) as told:
        read_prompts("mine/prompts.txt")
    assert "make demo-model" not in str(told.value)


def test_distill_on_a_fresh_checkout_names_make_demo_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Cannot read .*build/demo-model.*run `make demo-model` first"):
        distill(config.load("training/configs/shapes.yaml"))
    with pytest.raises(UserError, match="run `make demo-model` first"):
        report(config.load("training/configs/shapes.yaml"))
    assert not list(tmp_path.iterdir()), "nothing is begun"


def test_dry_run_says_that_the_prompts_are_not_there(teacher, tmp_path):
    settings = {"teacher": str(teacher), "prompts": str(tmp_path / "no.txt"), "output": str(tmp_path / "run")}
    assert "warning: Cannot read the prompt file" in report(config.parse(settings))
