"""The trainer as a wheel: whole, small, under its own name, and at work where the checkout is not."""

import ast
import email
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version

import pytest
from fresh import clean, install, make_environment, tracked
from packaging.specifiers import SpecifierSet

from comfyui.serve import COMFYUI, PACK

OWN = ("training", "snoopi_training", "nodes")
FRONTENDS = ">=1.32.9,<2.0.0"  # from that of ComfyUI 0.3.75 on
LEFT_OUT = ("training/README.md", "training/distillation.png", "training/shapes/weights/")
MEGABYTE = 2**20

#: Runs where only the wheel is: every module, every config with its prompts, the tokenizer, and a command.
USE = """
import importlib, json, pathlib, pkgutil, sys
import snoopi_training
from snoopi_training.recipe import config
from snoopi_training.prompts import read as prompts
from snoopi_training.shapes import text
folder = pathlib.Path(snoopi_training.__file__).parent
not_modules = ("__main__", "in_comfyui")  # they run when they are imported
for module in pkgutil.walk_packages([str(folder)], "snoopi_training."):
    if not module.name.endswith(not_modules):
        importlib.import_module(module.name)
lists = {}
for path in sorted(folder.glob("configs/**/*.yaml")):
    loaded = config.load("training/" + path.relative_to(folder).as_posix())
    for source in [loaded.prompts] + [loaded.nasa.prompts if loaded.nasa else loaded.prompts]:
        lists[source] = len(prompts.read_prompts(source)) if "demo-model" not in source else None
from snoopi_training.__main__ import main
main(["distill", "training/configs/sd15.yaml", "--dry-run"])
print(json.dumps({
    "lists": lists,
    "ids": text.tokenizer()("a red circle").input_ids,
    "from": sorted({str(getattr(module, "__file__", None)) for name, module in sys.modules.items()
                    if name.partition(".")[0] in ("snoopi_training", "training", "nodes")}),
}))
"""


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    """bin/ of an environment that has the wheel, and sees this one's packages."""
    return install(wheel, make_environment(tmp_path_factory.mktemp("installed")))


def run(programs, *command, cwd):
    options = {"cwd": cwd, "env": clean(programs), "capture_output": True, "text": True}
    return subprocess.run([programs / command[0], *command[1:]], **options)


def test_the_wheel_holds_every_file_of_the_trainer_and_nothing_else(names):
    """A new module, config or text file that pyproject.toml's lists miss shows here."""
    wanted = {name for name in tracked() if name.startswith("training/") and not name.startswith(LEFT_OUT)}
    code = {name for name in names if ".dist-info/" not in name}
    assert {name.replace("snoopi_training/", "training/", 1) for name in code} == wanted


def test_the_wheel_is_small_and_has_no_weights(wheel, names):
    assert wheel.stat().st_size < MEGABYTE
    assert not [name for name in names if name.endswith((".safetensors", ".png"))]


def test_the_wheel_asks_for_nothing_but_the_frontend_and_in_its_extra_and_claims_no_address(wheel, names):
    (path,) = (name for name in names if name.endswith("/METADATA"))
    described = email.message_from_bytes(zipfile.ZipFile(wheel).read(path))
    required = described.get_all("Requires-Dist")
    always = [line for line in required if "extra ==" not in line]  # the registry reads it, see below
    assert [re.match(r"[\w-]+", line)[0] for line in always] == ["comfyui-frontend-package"]
    assert any(line.startswith("torch") for line in required)
    assert described.get_all("Project-URL") is None and described["Home-page"] is None


def test_the_wheel_works_where_the_checkout_is_not(installed, tmp_path):
    made = run(installed, "python", "-c", USE, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout.splitlines()[-1])
    assert found["ids"] == [49406, 320, 736, 7117, 49407]  # CLIP's own
    assert found["lists"]["training/configs/prompts.txt"] == 12
    assert found["lists"]["training/configs/negative_prompts.txt"] == 10
    assert all(path.startswith(str(installed.parent)) for path in found["from"]), "nothing of the checkout"
    assert "859.5 M parameters" in made.stdout and "holds 12 prompts" in made.stdout


def test_help_needs_not_one_package(wheel, tmp_path_factory, tmp_path):
    """And without the extra, a command that does tells what is missing in a sentence."""
    programs = install(wheel, make_environment(tmp_path_factory.mktemp("bare"), empty=True))
    shown = run(programs, "snoopi-train", "--help", cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout.startswith("usage: snoopi-train"), shown.stderr
    assert "snoopi-train distill training/configs/sd15.yaml --dry-run" in shown.stdout
    assert "-m snoopi_training distill" in shown.stdout and "python -m training" not in shown.stdout
    for module in (["snoopi_training"], ["snoopi_training.shapes", "make"]):
        made = run(programs, "python", "-m", *module, "--help", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    told = run(programs, "snoopi-train", "inspect", "x.safetensors", cwd=tmp_path)
    assert told.returncode == 2 and "not installed; install the extra `training`" in told.stderr
    assert "Traceback" not in told.stderr


def test_every_import_of_the_trainer_is_relative():
    """Or it would break under its other name; also those inside of functions."""
    wrong = []
    for path in sorted((PACK / "training").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}:{node.lineno}" for name in modules if name.partition(".")[0] in OWN]
    assert not wrong


def test_comfyui_and_its_registry_read_pyproject():
    """By ComfyUI's own reader, as by the registry's command; the frontend of the tests is in the range."""
    code = (
        "from comfy_config.config_parser import extract_node_configuration as read; import sys, json\n"
        "found = read(sys.argv[1]); project, comfy = found.project, found.tool_comfy\n"
        "print(json.dumps([project.name, project.version, project.dependencies, project.license.file,"
        " project.urls.repository, comfy.publisher_id, comfy.display_name, project.supported_comfyui_version,"
        " project.supported_comfyui_frontend_version]))"
    )
    command = [sys.executable, "-c", code, str(PACK)]
    read = subprocess.run(command, cwd=COMFYUI, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    wanted = tomllib.loads((PACK / "pyproject.toml").read_text())
    project, comfy = wanted["project"], wanted["tool"]["comfy"]
    told = [project["name"], project["version"], [f"comfyui-frontend-package{FRONTENDS}"], "LICENSE", "",
            comfy["PublisherId"], comfy["DisplayName"], ">=0.3.75", FRONTENDS]  # fmt: skip
    assert json.loads(read.stdout.splitlines()[-1]) == told
    assert version("comfyui_frontend_package") in SpecifierSet(FRONTENDS)
