"""Every command of README.md, docs/ and training/README.md, run in a fresh checkout and a fresh environment, in their
order but for the trainer's, which come last, all in one process: each alone would import torch for five seconds.

Long ones run in a short form, which SHORT tells; models and settings are small. A command that SHORT does not know
fails here, and so does an entry that no README has.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from fresh import clean, make_environment

from comfyui.serve import COMFYUI, PACK
from training.recipe import config

sys.path.append(str(PACK / "tests/training"))
from small_models import make_clip, make_pixart, make_teacher  # noqa: E402

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (PACK / "docs").glob("*.md")), "training/README.md")
#: A requirement for torch, as torch==2.13.0: the commands then run in an environment that sees no package at all, where
#: that is installed first (without a version pip would take the one for CUDA, several GB). Else they run in one that
#: sees the packages of this one, so that installing is quick.
TORCH = os.environ.get("SNOOPI_INSTALL_TORCH")

AS_IT_IS = None
#: {command of a README, in a block or in its text: what is run instead}
SHORT = {
    # README.md, docs/
    "make demo": "make demo ARGS=--help",  # in small: tests/demo
    "make test": "make test ARGS='-q -k wrong_settings --tiers install'",
    "make bench": "make -n bench | grep benchmarks | sed 's/$/ --help/' | bash -e",  # in small: tests/benchmarks
    "make demo COMFYUI_PATH=DIR PYTHON=FILE": 'make -n demo COMFYUI_PATH="$COMFYUI" PYTHON="$INTERPRETER"',
    "make help": AS_IT_IS,
    "make fuzz": "make fuzz ARGS='--collect-only -q'",  # its test is one of `make test`
    "make soak": "make soak ARGS=--help",
    "make presets": "make -n presets",  # in whole: tests/nodes/sampling/test_presets.py
    'ln -s "$PWD" /path/to/ComfyUI/custom_nodes/ComfyUI-SNOOPI': 'ln -s "$PWD" "$FOLDER/custom_nodes/ComfyUI-SNOOPI"',
    "make environment": AS_IT_IS,
    "pip install -e '.[training]'": AS_IT_IS,
    "python -m training distill training/configs/sd15.yaml --dry-run": AS_IT_IS,
    "make demo-model": "$(make -n demo-model | tail -n 1) --help",  # over an hour
    "python -m training distill training/configs/shapes.yaml --output runs/shapes": AS_IT_IS,
    'python -m training sample runs/shapes --prompt "a red circle" --output grid.png': AS_IT_IS,
    "python -m training export runs/shapes --output my-model.safetensors": AS_IT_IS,
    "python -m training inspect my-model.safetensors": AS_IT_IS,
    # docs/how-good-is-my-model.md; in small: test_evaluate_recipes.py and tests/shapes/test_evaluation.py
    "pip install -e '.[training,evaluation]'": AS_IT_IS,
    "python -m training evaluate --list": AS_IT_IS,
    "python -m training evaluate table5 pgsb_sd15=runs/sd15 --only pgsb_sd15 --dry-run": AS_IT_IS,
    "python -m training evaluate table5 pgsb_sd15=runs/sd15 --only pgsb_sd15": (
        "python -m training evaluate table5 pgsb_sd15=runs/sd15 --only pgsb_sd15 --dry-run"
    ),
    "python -m training evaluate table5 pgsb_sd15=student.safetensors --only pgsb_sd15 --count 200": (
        "python -m training evaluate table5 pgsb_sd15=student.safetensors --only pgsb_sd15 --count 200 --dry-run"
    ),
    "python -m training evaluate figure2_sd15 --watch runs/sd15": "python -m training evaluate figure2_sd15 --dry-run",
    "make evaluate ARGS=--without-training": "make evaluate ARGS=--help",
    "make evaluate": "make -n evaluate",
    # training/README.md
    "snoopi-train --help": AS_IT_IS,
    "python -m training": "python -m training --help",
    "PYTHONPATH=tests python -P -m benchmarks.training_full_size": "make -n bench | grep training_full_size",
    "python -m training distill training/configs/sd15.yaml": AS_IT_IS,
    "python -m training distill training/configs/sd15.yaml --resume --set student.learning_rate=5e-7": AS_IT_IS,
    "accelerate launch --multi_gpu -m training distill training/configs/sd15.yaml --resume": (
        # one process more would cost ten seconds; tests/training/test_parallel.py has two
        "python -m accelerate.commands.accelerate_cli launch --cpu --num_processes 1 --mixed_precision no"
        " -m training distill training/configs/sd15.yaml --resume --output runs/several"
    ),
    "python -m training encode training/configs/pixart.yaml --output runs/encoded": AS_IT_IS,
    "python -m training distill training/configs/shapes-4-steps.yaml": AS_IT_IS,
    "python -m training.shapes compare build/demo-model/student build/demo-model/student-4-steps": (
        "python -m training.shapes compare --help"  # in small: tests/training/test_few_steps.py
    ),
    'python -m training sample runs/sd15 --prompt "A photo of a pet" --output pets.png': AS_IT_IS,
    "python -m training export runs/sd15 --output my-model.safetensors": AS_IT_IS,
    "python -m training merge my-model.safetensors runs/sd15 --weights .5 .5 --output mean.safetensors": AS_IT_IS,
}
#: What the shipped configs get, so that a run takes a second. Their teachers are small ones in folders of their names.
SMALL = {
    "device": "cpu", "steps": 2, "batch_size": 4, "micro_batch": 4, "text_cache_megabytes": 0, "sample_every": 2,
    "sample_prompts": ["red"], "samples_per_prompt": 2, "checkpoint_every": 2,
}  # fmt: skip
LEFT_BEHIND = (
    "grid.png", "pets.png", "my-model.safetensors", "mean.safetensors", "runs/encoded/index.json",
    "runs/shapes/samples", "runs/sd15/metrics.jsonl", "runs/several/metrics.jsonl",
)  # fmt: skip

#: Runs trainer commands, their words as JSON on stdin, one after the other.
DRIVER = """
import json, sys, traceback
from training.__main__ import main
from accelerate.state import AcceleratorState
for words in json.load(sys.stdin):
    try:
        code = main(words)
    except SystemExit as left:
        code = left.code
    except BaseException:
        code = traceback.format_exc()
    AcceleratorState._reset_state(reset_partial_state=True)
    print("\\nENDED", json.dumps(code), flush=True)
"""


NO_COMMANDS = ("text", "yaml")  # blocks marked as such
COMMAND = re.compile(r"([A-Z_]+=\S+ )*(make|python3?|pip|accelerate|git|ln|cp|snoopi-train(?=\s))\b(?![.:])")


@dataclass
class Done:
    code: object  # 0 where all is well
    output: str


def commands_of(page: str) -> tuple[list[str], list[str]]:
    """The commands of a page's blocks, in order; and those that stand in its text and in the blocks' comments."""
    text = (PACK / page).read_text()
    block = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    lines = [line for kind, inside in block.findall(text) if kind not in NO_COMMANDS for line in inside.splitlines()]
    parts = [re.split(r"(?:^|\s+)#", line, maxsplit=1) for line in lines]
    prose = "\n".join([block.sub("", text), *(comment for _, *comments in parts for comment in comments)])
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [command.strip() for command, *_ in parts if command.strip()], list(filter(COMMAND.match, spans))


def test_every_command_of_the_pages_is_run_here_and_no_other():
    pages = [commands_of(page) for page in PAGES]
    assert {command for blocks, spoken in pages for command in blocks + spoken} == set(SHORT)


@pytest.fixture(scope="module")
def world(checkout, tmp_path_factory) -> Path:
    """The checkout with small teachers where the configs look for them, and fewer steps in the configs."""
    for name in ("shapes", "sd15", "pixart"):
        path = checkout / f"training/configs/{name}.yaml"
        settings = yaml.safe_load(path.read_text()) | SMALL
        settings["lora"] = settings["lora"] | {"rank": 2, "initial_steps": 1}
        path.write_text(yaml.safe_dump(settings))
        loaded = config.load(path)
        if name == "pixart":
            make_pixart(checkout / loaded.teacher)
            continue
        teacher = make_teacher(checkout / loaded.teacher)
        if loaded.clip:
            make_clip(checkout / loaded.clip.model, teacher / "tokenizer")
            (checkout / loaded.clip.decoder).parent.mkdir(exist_ok=True)
            (checkout / loaded.clip.decoder).symlink_to(teacher / "vae")
    (checkout / "build/demo-model/prompts.txt").write_text("a red circle\na blue square\n")
    return checkout


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory) -> Path:
    """The place of a ComfyUI into which the pack is linked."""
    folder = tmp_path_factory.mktemp("ComfyUI")
    (folder / "custom_nodes").mkdir()
    return folder


@pytest.fixture(scope="module")
def ran(world, comfyui, tmp_path_factory) -> dict[str, Done]:
    """{command: what came of it}."""
    programs = make_environment(tmp_path_factory.mktemp("environment"), empty=bool(TORCH), with_pip=True)
    environment = clean(programs, COMFYUI=str(COMFYUI), INTERPRETER=sys.executable, FOLDER=str(comfyui))
    made = {"COMFYUI_PATH": str(COMFYUI), "PYTHON": sys.executable}  # else make would install both anew

    def shell(command: str, **more: str) -> Done:
        options = {"cwd": world, "env": environment | more, "text": True, "stderr": subprocess.STDOUT}
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], stdout=subprocess.PIPE, **options)
        return Done(done.returncode, done.stdout)

    def trainer(commands: list[str]) -> dict[str, Done]:
        given = json.dumps([shlex.split(SHORT[command] or command)[3:] for command in commands])
        options = {"cwd": world, "env": environment, "text": True, "stderr": subprocess.STDOUT}
        done = subprocess.run(["python", "-c", DRIVER], input=given, stdout=subprocess.PIPE, **options)
        parts = re.split(r"^ENDED (.*)\n", done.stdout, flags=re.MULTILINE)
        found = [Done(json.loads(code), text) for text, code in zip(parts[::2], parts[1::2], strict=False)]
        return dict(zip(commands, found + [Done("not reached", done.stdout)] * len(commands), strict=False))

    if TORCH:
        assert shell(f"pip install -q {TORCH}").code == 0
    order = list(dict.fromkeys(command for page in PAGES for commands in commands_of(page) for command in commands))
    of_trainer = [command for command in order if command.startswith("python -m training ")]
    others = [command for command in order if command not in of_trainer]
    results = {command: shell(SHORT[command] or command, **(made if "make" in command else {})) for command in others}
    return results | trainer(of_trainer)


@pytest.mark.parametrize("command", SHORT)
def test_command(ran, command):
    assert ran[command].code == 0, ran[command].output[-3000:]


def test_the_commands_leave_what_they_promise(ran, world):
    assert [name for name in LEFT_BEHIND if not (world / name).exists()] == []
    assert "M parameters" in ran["python -m training distill training/configs/sd15.yaml --dry-run"].output
    assert "one step from timestep" in ran["python -m training inspect my-model.safetensors"].output


def test_the_link_is_where_comfyui_looks_for_packs(ran, comfyui):
    link = comfyui / "custom_nodes/ComfyUI-SNOOPI"
    assert (link / "__init__.py").is_file() and (link / "nodes").is_dir()


def test_the_first_page_is_short_and_begins_with_installing():
    text = (PACK / "README.md").read_text()
    assert len(text.split()) < 900
    assert "## Install\n" in "\n".join(text.splitlines()[:30]), "not in the first screen"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page):
    links = [unquote(link) for link in re.findall(r"\]\((?!https?:)([^)#]+)", (PACK / page).read_text())]
    assert links and [link for link in links if not (PACK / page).parent.joinpath(link).exists()] == []
    assert page == "README.md" or any(link.endswith((".png", ".jpg")) for link in links), "a page without a picture"


def test_every_page_of_docs_is_linked_from_the_first():
    text = (PACK / "README.md").read_text()
    assert [page for page in PAGES if page.startswith("docs/") and f"({page})" not in text] == []


def test_no_page_names_an_address_that_is_not_there():
    for page in (*PAGES, "pyproject.toml"):
        text = (PACK / page).read_text()
        assert "git clone" not in text and "github.com/comfyui-snoopi" not in text
