"""`evaluate`, the drawing half: PNG by id, the same bytes in one process or several, interrupted or not."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from PIL import Image

from training.__main__ import main
from training.errors import UserError
from training.evaluate import painter as painters
from training.evaluate.draw import draw
from training.evaluate.pictures import drawn_pictures
from training.evaluate.prompt_set import read_prompt_set
from training.evaluate.recipe import Prompts, Variant, load_recipe
from training.evaluate.sample import load_model
from training.evaluate.table import draw_all
from training.method.warm_start import ddim_sample

PAIRS = [("a red circle", "red"), ("a pet", "blue"), ("a square", "circle"), ("a circle", "pet"), ("red", "a")]


@pytest.fixture
def here(tmp_path, monkeypatch, teacher) -> Path:
    """The working folder: prompts with negatives, and recipe.yaml that draws five pictures in batches of two."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": prompt, "negative": negative}) for prompt, negative in PAIRS]
    Path("pairs.jsonl").write_text("\n".join(lines) + "\n")
    write_recipe(teacher)
    return tmp_path


def write_recipe(teacher: Path, **changes) -> None:
    content = {
        "title": "a test",
        "prompts": {"source": "pairs.jsonl", "negative": "negative"},
        "size": 16,
        "batch": 2,
        "models": {"student": str(teacher)},
        "variants": {"plain": {"model": "student", "timestep": 625, "noise": "vp"}},
        "scores": {"kept": {"judge": "vit_b_32"}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(content | changes))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def draw_with(output: str, **options) -> dict[str, bytes]:
    draw_all(load_recipe("recipe.yaml"), Path(output), **options)
    return bytes_of(Path(output))


def test_draws_a_png_by_id_of_every_prompt(here):
    drawn = draw_with("out")
    assert list(drawn) == [f"plain/{number:05d}.png" for number in range(len(PAIRS))]
    assert len(set(drawn.values())) == len(PAIRS)
    assert Image.open("out/plain/00000.png").size == (16, 16)
    told = json.loads(Path("out/plain/drawn.json").read_text())
    assert len(told["weights_sha256"]) == 64 and told["variant"]["timestep"] == 625 and told["pictures"] == 5


def test_a_resumed_draw_gives_the_same_bytes(here):
    """Stopped after the first batch, and with one picture of the second lost in the middle."""
    whole = draw_with("whole")
    asked = iter([False, True])
    with pytest.raises(KeyboardInterrupt, match="2 of 5 pictures are kept"):
        draw_with("out", stop=lambda: next(asked))
    first = Path("out/plain/00000.png").stat().st_mtime_ns
    assert draw_with("out") == whole
    assert Path("out/plain/00000.png").stat().st_mtime_ns == first, "what exists is not drawn again"
    Path("out/plain/00003.png").unlink()
    assert draw_with("out") == whole


def test_two_processes_draw_what_one_does(here):
    whole = draw_with("whole")
    first = draw_with("out", shard=(1, 2))
    assert set(first) == {"plain/00002.png", "plain/00003.png"}
    assert draw_with("out", shard=(0, 2)) == whole


def test_the_command_draws_by_shards_and_by_the_processes_of_accelerate(here, monkeypatch, capsys):
    assert main(["evaluate", "recipe.yaml", "--draw", "--shard", "0/2", "--output", "out"]) == 0
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "recipe.yaml", "--output", "out"]) == 0
    assert bytes_of(Path("out")) == draw_with("whole")


def test_a_picture_depends_on_its_id_and_not_on_its_company(here, teacher):
    """But for rounding: another batch, another place in the list."""
    backbone, start = load_model(str(teacher))
    paint = painters.make_painter(backbone, start, Variant(model="student", timestep=625, noise="vp"))
    prompts = read_prompt_set(Prompts(source="pairs.jsonl"), Path())
    together, alone = paint(prompts), paint(prompts[3:4])
    assert numpy.abs(together[3].astype(int) - alone[0].astype(int)).max() <= 1


def painted(teacher, **settings) -> numpy.ndarray:
    backbone, start = load_model(str(teacher))
    backbone.decode = lambda latents: latents.numpy()
    variant = Variant(model="student", **({"timestep": 625, "noise": "vp"} | settings))
    return painters.make_painter(backbone, start, variant)(
        read_prompt_set(Prompts(source="pairs.jsonl", negative="negative"), Path())
    )


def test_every_way_of_a_negative_prompt_changes_the_picture_and_none_leaves_it(here, teacher):
    plain = painted(teacher)
    nasa = painted(teacher, negative="nasa", alpha=0.5)
    for other in (
        nasa,
        painted(teacher, negative="cfg", guidance=2),
        painted(teacher, negative="embedding", alpha=0.5),
        painted(teacher, negative="nasa", alpha=0.5, negative_prompt="pet"),
    ):
        assert numpy.abs(other - plain).max() > 1e-3
    assert numpy.array_equal(painted(teacher, negative="nasa", alpha=0.0), plain)
    assert numpy.array_equal(painted(teacher, negative="cfg", guidance=1), plain)


def test_cfg_in_one_step_is_cfg_of_what_the_network_says(here, teacher):
    """x0 = (x - sigma (eps_negative + s (eps - eps_negative))) / alpha, written out."""
    backbone, _ = load_model(str(teacher))
    prompts = read_prompt_set(Prompts(source="pairs.jsonl", negative="negative"), Path())
    z = torch.stack([painters.noise_of(0, prompt.id, backbone.latent_shape()) for prompt in prompts])
    t = torch.full((5,), 625)
    alpha, sigma = backbone.coefficients(t)
    with torch.no_grad():
        eps, eps_negative = (
            backbone.predict(backbone.network, sigma * z, t, backbone.encode(list(texts)))
            for texts in zip(*PAIRS, strict=True)
        )
    x0 = (sigma * z - sigma * (eps_negative + 2.5 * (eps - eps_negative))) / alpha
    assert torch.allclose(torch.from_numpy(painted(teacher, negative="cfg", guidance=2.5)), x0, atol=1e-4)


def test_a_teacher_draws_by_many_steps_of_ddim(here, teacher):
    backbone, _ = load_model(str(teacher))
    prompts = read_prompt_set(Prompts(source="pairs.jsonl"), Path())
    z = torch.stack([painters.noise_of(3, prompt.id, backbone.latent_shape()) for prompt in prompts])
    text, null = backbone.encode([prompt.prompt for prompt in prompts]), backbone.encode([""] * 5)

    def predict(x_t, t, words):
        return backbone.predict(backbone.network, x_t, t, words)

    wanted = ddim_sample(backbone.sampler, predict, z, text, null, 4, 3.0)
    found = torch.from_numpy(painted(teacher, steps=4, guidance=3, seed=3))
    assert torch.equal(found, wanted)
    assert numpy.abs(painted(teacher, steps=4, guidance=3, seed=4) - wanted.numpy()).max() > 1e-3
    drawn = painted(teacher, steps=4, guidance=2, guidance_to=5, seed=3)
    assert numpy.array_equal(drawn, painted(teacher, steps=4, guidance=2, guidance_to=5, seed=3))
    assert numpy.abs(drawn - wanted.numpy()).max() > 1e-3


def test_a_few_step_student_gets_new_noise_between_its_steps(here, teacher):
    one, four = painted(teacher), painted(teacher, steps=4, sampler="renoise")
    assert numpy.isfinite(four).all() and numpy.abs(one - four).max() > 1e-3
    assert numpy.array_equal(one, painted(teacher, steps=1, sampler="renoise"))


def test_draws_with_a_run_and_an_exported_file_too(here, settings, teacher):
    from training.distill import distill
    from training.export import export
    from training.recipe.config import parse

    distill(parse(settings | {"warm_start": None, "steps": 1}))
    export(settings["output"], "student.safetensors", check="diffusers")
    draw_all(load_recipe("recipe.yaml").with_models([settings["output"]]), Path("run-out"))
    recipe = load_recipe("recipe.yaml", [f"models.student={{path: student.safetensors, teacher: {teacher}}}"])
    draw_all(recipe, Path("file-out"))
    assert set(bytes_of(Path("run-out"))) == set(bytes_of(Path("file-out"))) and bytes_of(Path("file-out"))
    one, other = (numpy.asarray(Image.open(f"{name}/plain/00000.png")).astype(int) for name in ("run-out", "file-out"))
    assert numpy.abs(one - other).max() <= 2


def test_weights_of_another_model_under_the_same_path_are_refused(here, teacher):
    copy = shutil.copytree(teacher, here / "model")
    write_recipe(copy)
    draw_with("out")
    from safetensors.torch import load_file, save_file

    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value * 1.01 for key, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(UserError, match="was drawn by something else .weights_sha256 was"):
        draw_with("out")


def test_another_recipe_or_prompt_set_into_the_same_folder_is_refused(here, teacher):
    draw_with("out")
    write_recipe(teacher, variants={"plain": {"model": "student", "timestep": 626, "noise": "vp"}})
    with pytest.raises(UserError, match="drawn by something else .variant was"):
        draw_with("out")
    write_recipe(teacher, prompts={"source": "pairs.jsonl", "negative": "negative", "count": 3})
    with pytest.raises(UserError, match="drawn by something else .*prompts_sha256"):
        draw_with("out")


def read_back(folder: str = "out/plain"):
    prompts = read_prompt_set(Prompts(source="pairs.jsonl", negative="negative"), Path())
    return drawn_pictures(Path(folder), prompts, None)


def test_missing_ids_are_told_before_anything_is_scored(here):
    draw_with("out")
    Path("out/plain/00001.png").unlink()
    with pytest.raises(UserError, match="lacks 1 of 5 pictures, the first is 00001; draw them"):
        read_back()


def test_a_folder_of_two_runs_mixed_is_told(here, teacher):
    draw_with("out")
    write_recipe(teacher, variants={"plain": {"model": "student", "timestep": 700, "noise": "vp"}})
    draw_with("other")
    shutil.copy("other/plain/00002.png", "out/plain/00002.png")
    with pytest.raises(UserError, match="00002.png is of another drawing"):
        read_back()
    shutil.copy("out/plain/00001.png", "out/plain/more.png")
    with pytest.raises(UserError, match="holds 1 pictures of other ids, such as more"):
        read_back()


def test_a_picture_of_another_size_or_damaged_is_told(here):
    draw_with("out")
    Path("out/plain/drawn.json").unlink()  # drawn elsewhere: nothing is known but the names
    Image.new("RGB", (8, 16)).save("out/plain/00002.png")
    with pytest.raises(UserError, match="00002.png has 8 x 16 pixels and the others 16 x 16"):
        list(read_back().batches())
    Path("out/plain/00002.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match="Cannot read the picture .*00002.png"):
        list(read_back().batches())


@pytest.mark.parametrize(
    "lines, sentence",
    [
        ([{"prompt": "a", "id": "../../x"}], "the id ../../x cannot name a file"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "X"}], "the id X is there twice"),
        ([{"prompt": "a", "id": "x" * 200}], "cannot name a file"),
        ([{"prompt": "a"}], "no key `id`"),
    ],
)
def test_ids_that_cannot_name_a_file_are_refused(here, lines, sentence):
    Path("ids.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=sentence):
        read_prompt_set(Prompts(source="ids.jsonl", id="id"), Path())


def test_groups_ids_and_several_pictures_a_prompt(here):
    lines = [json.dumps({"prompt": "a pet", "style": style}) for style in ("anime", "a/b c")]
    Path("g.jsonl").write_text("\n".join(lines))
    found = read_prompt_set(Prompts(source="g.jsonl", group="style", each=2), Path())
    ids = ["anime/00000-0000", "anime/00000-0001", "a_b_c/00001-0000", "a_b_c/00001-0001"]
    assert [prompt.id for prompt in found] == ids
    drawn = [prompt.prompt for prompt in read_prompt_set(Prompts(source="pairs.jsonl", count=3, draw_seed=7), Path())]
    again = [prompt.prompt for prompt in read_prompt_set(Prompts(source="pairs.jsonl", count=3, draw_seed=7), Path())]
    assert drawn == again and drawn != [prompt for prompt, _ in PAIRS[:3]]


def test_a_file_with_fewer_prompts_than_the_recipe_wants_is_told(here):
    with pytest.raises(UserError, match="holds 5 prompts and the recipe wants 30; .*--count 5 for a trial"):
        read_prompt_set(Prompts(source="pairs.jsonl", count=30), Path())
    assert len(read_prompt_set(Prompts(source="pairs.jsonl"), Path(), 4)) == 4


def test_a_full_disk_loses_nothing(here, monkeypatch):
    import os

    draw_with("out", shard=(0, 2))
    before = bytes_of(Path("out"))
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device; nothing that was there is lost"):
        draw_with("out")
    assert bytes_of(Path("out")) == before


def test_nan_of_a_model_is_told_and_not_drawn(here, teacher):
    prompts = read_prompt_set(Prompts(source="pairs.jsonl"), Path())
    backbone, start = load_model(str(teacher))
    next(backbone.network.parameters()).data.fill_(float("nan"))
    paint = painters.make_painter(backbone, start, Variant(model="student", timestep=625))
    with pytest.raises(UserError, match="NaN or infinite numbers; what was drawn before is kept"):
        draw(Path("out"), paint, {}, prompts, 2, None)
    assert not bytes_of(Path("out"))
