"""The model card beside an export: what it says, what it does not invent, and whose card it never replaces."""

import re
from pathlib import Path

import pytest
import safetensors.torch
import yaml
from diffusers import UNet2DConditionModel
from PIL import Image
from small_models import make_teacher

from training.export import export
from training.export.card import MARK, card
from training.export.headers import read_header
from training.export.inspect import describe
from training.export.metadata import LICENCE_UNKNOWN, licence_of
from training.recipe.config import parse
from training.run.checkpoint import Checkpoint, save
from training.run.folder import write_config


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A teacher with a licence, and a run of it: checkpoint of step 5, grids of steps 0, 4 and 9."""
    home = tmp_path_factory.mktemp("home of somebody")
    teacher = make_teacher(home / "my-teacher")
    (teacher / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")
    values = {"teacher": str(teacher), "prompts": str(home / "secret/prompts.txt"), "output": str(home / "run")}
    values |= {"start": {"timestep": 625, "noise": "vp"}, "kappa": [0.5, 3], "steps": 60, "batch_size": 8}
    write_config(home / "run", parse(values | {"student": {"learning_rate": 2e-6, "schedule": "cosine"}}))
    state = UNet2DConditionModel.from_pretrained(teacher / "unet").state_dict()
    save(home / "run", Checkpoint({"student": state}, {}, {"step": 5, "bad_steps": 0}), 1)
    for step in (0, 4, 9):
        (home / "run/samples").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(home / f"run/samples/step-{step:08d}.png")
    return home


@pytest.fixture(scope="module")
def exported(home, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "my model.safetensors"
    export(home / "run", output, check="diffusers", title="My *model*")
    return output


def test_the_card_tells_base_licence_recipe_use_and_what_auto_runs(home, exported):
    text = exported.with_name("README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "creativeml-openrail-m" and front["pipeline_tag"] == "text-to-image"
    assert "base_model" not in front  # a folder of this machine is no address
    assert "# My \\*model\\*\n" in text and "Base model: my-teacher\n" in text
    assert "Licence of the base model: creativeml-openrail-m\n" in text
    assert "5 of 60 steps of 8, kappa 0.5 to 3" in text
    assert "models/checkpoints`" in text and "*SNOOPI Checkpoint Loader*" in text
    assert "*SNOOPI One-Step Sampler*, preset `auto`" in text
    runs = re.search(r"```text\n(.*?)\n```", text, re.DOTALL)[1]
    assert "one step from timestep 625, CFG 1; the network receives the noise times sigma" in runs
    assert all(line in describe(exported) for line in runs.splitlines())
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe["student"]["schedule"] == "cosine" and recipe["kappa"] == [0.5, 3.0] and recipe["steps"] == 60
    assert recipe["teacher"] == "my-teacher" and recipe["prompts"] == "prompts.txt" and "output" not in recipe


def test_the_card_shows_the_runs_newest_grid_that_its_checkpoint_has_seen(home, exported):
    assert "![What it draws](my%20model.samples.png)" in exported.with_name("README.md").read_text()
    assert "at step 4:" in exported.with_name("README.md").read_text()
    shown = exported.with_name("my model.samples.png").read_bytes()
    assert shown == (home / "run/samples/step-00000004.png").read_bytes()


def test_the_card_names_no_folder_of_whoever_wrote_it_and_no_address(home, exported):
    text = exported.with_name("README.md").read_text()
    assert str(home) not in text and str(home.parent) not in text and "secret" not in text
    assert "http" not in text and "huggingface" not in text.lower()


def test_a_hub_name_is_told_as_the_base_model_and_an_unknown_licence_is_said_to_be_unknown(exported):
    shapes, metadata = read_header(exported)
    metadata |= {"snoopi.base_model": "stabilityai/sdxl-turbo", "snoopi.base_model_license": LICENCE_UNKNOWN}
    text = card("x.safetensors", shapes, metadata, None, None)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "stabilityai/sdxl-turbo" and "license" not in front
    assert "Licence of the base model: unknown: neither its folder nor its card names one; find it out" in text
    assert "![" not in text


@pytest.mark.parametrize(
    "layout, folder, loader",
    [("unet", "diffusion_models", "SNOOPI Checkpoint Loader"), ("lora", "loras", "Load LoRA")],
)
def test_each_layout_says_where_it_goes_and_what_loads_it(layout, folder, loader):
    names = {"unet": "model.diffusion_model.input_blocks.0.0.weight", "lora": "lora_unet_x.lora_up.weight"}
    text = card("x.safetensors", {names[layout]: ((1,), "F32")}, {}, None, None)
    assert f"`models/{folder}`" in text and f"*{loader}*" in text
    assert ("lora" in yaml.safe_load(text.split("---\n")[1])["tags"]) == (layout == "lora")


def test_licences_are_read_from_card_licence_file_and_single_files_metadata(teacher, tmp_path):
    for name in ("LICENSE.md", "LICENCE"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("\n# CreativeML Open RAIL-M\n\ndated August 22, 2022\n")
        assert licence_of(str(folder)) == "CreativeML Open RAIL-M"
    (tmp_path / "LICENCE/README.md").write_text("---\nlicense: mit\n---\n")
    assert licence_of(str(tmp_path / "LICENCE")) == "mit"
    single = {"named": {"modelspec.license": "Fair AI Public License 1.0-SD"}, "silent": None}
    for name, metadata in single.items():
        safetensors.torch.save_file({}, tmp_path / f"{name}.safetensors", metadata)
    assert licence_of(str(tmp_path / "named.safetensors")) == "Fair AI Public License 1.0-SD"
    assert licence_of(str(tmp_path / "silent.safetensors")) == LICENCE_UNKNOWN
    assert licence_of(str(teacher)) == LICENCE_UNKNOWN


def test_a_card_of_the_users_is_never_replaced_and_our_own_is(home, exported, tmp_path):
    told = []
    options = {"check": "diffusers", "tell": told.append}
    (tmp_path / "README.md").write_text("# Mine\n")
    output = tmp_path / "m.safetensors"
    export(home / "run", output, **options)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    ours = tmp_path / "m.README.md"
    assert MARK[:4] in ours.read_text() and told[-1] == f"Its model card: {ours}"
    export(home / "run", output, title="Again", **options)
    assert "# Again\n" in ours.read_text()
    ours.write_text(ours.read_text().replace("# Again", "# Again, with my own words"))
    export(home / "run", output, title="Thrice", **options)
    assert "with my own words" in ours.read_text() and told[-1].startswith("No model card: README.md and m.README.md")
    assert output.is_file()


def test_each_of_two_exports_in_one_folder_keeps_its_card(home, tmp_path):
    for name in ("a", "b", "a"):
        export(home / "run", tmp_path / f"{name}.safetensors", check="diffusers", title=f"Model {name}")
    assert "# Model a\n" in (tmp_path / "README.md").read_text()
    assert "# Model b\n" in (tmp_path / "b.README.md").read_text()
