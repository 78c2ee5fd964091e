"""Environments that sit on an interpreter of the user's: they see its packages and change nothing in it."""

import subprocess
import sys

import pytest

from comfyui import provision
from comfyui.serve import PACK


def run(*arguments):
    command = [sys.executable, PACK / "tests" / "comfyui" / "provision.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_layered_environment_sees_what_is_below(tmp_path, monkeypatch):
    installed = []
    monkeypatch.setattr(provision, "pip", lambda venv, *arguments: installed.append(arguments))
    for _ in range(2):
        provision.layered_venv(tmp_path / "venv", sys.executable, None)
    assert len(installed) == 1, "the second run must find the stamp"
    code = "import sys, torch, pytest; print(torch.__file__, sys.prefix)"
    found = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    )
    torch_file, prefix = found.stdout.split()
    assert not torch_file.startswith(str(tmp_path)) and prefix == str(tmp_path / "venv")


@pytest.mark.parametrize(
    "arguments, sentence",
    [(["--comfyui", "/no/such/folder"], "is no ComfyUI checkout"), (["--over", "/no/such/python"], "cannot be run")],
)
def test_wrong_settings_are_one_sentence(tmp_path, arguments, sentence):
    made = run(tmp_path / "venv", *arguments)
    assert made.returncode == 1 and sentence in made.stderr and "Traceback" not in made.stderr
    assert not (tmp_path / "venv").exists()
