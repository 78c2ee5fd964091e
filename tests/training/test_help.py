"""`--help` answers before anything large is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LARGE = {"torch", "numpy", "diffusers", "transformers", "peft", "accelerate", "safetensors", "tqdm", "yaml", "PIL",
         "pydantic"}  # fmt: skip
TELL = """
import json, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as left:
    print(json.dumps([left.code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize(
    "command", ["", "distill", "encode", "export", "sample", "merge", "evaluate", "inspect", "settings"]
)
def test_help_of_the_trainer_imports_no_library(command):
    shown, code, imported = ask("training", *([command] if command else []), "--help")
    assert code == 0 and shown.startswith(f"usage: python -m training {command}".rstrip())
    assert not imported & LARGE


@pytest.mark.parametrize("command", ["", "make", "checkpoint"])
def test_help_of_the_demo_model_imports_no_library(command):
    _, code, imported = ask("training.shapes", *([command] if command else []), "--help")
    assert code == 0 and not imported & LARGE


def test_a_wrong_argument_is_told_before_any_import():
    _, code, imported = ask("training", "distil", "x.yaml")
    assert code == 2 and not imported & LARGE


def ask(*words: str) -> tuple[str, int, set[str]]:
    """What the command prints, its exit code, and the top modules that it imported."""
    made = subprocess.run([sys.executable, "-c", TELL, *words], cwd=REPOSITORY, capture_output=True, text=True)
    *shown, last = made.stdout.splitlines() or [made.stderr]
    code, imported = json.loads(last)
    return "\n".join(shown), code, set(imported)
