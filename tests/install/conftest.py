"""A fresh checkout, and the wheel that pip builds from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import tracked

from comfyui.serve import PACK


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clone") / "ComfyUI-SNOOPI"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PACK / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, checkout) -> Path:
    """The wheel that pip builds, by setuptools in an environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(checkout)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (file,) = folder.glob("*.whl")
    return file
