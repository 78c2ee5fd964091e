"""One running ComfyUI for all tests that talk to one, with the demo model's layout and random weights."""

import importlib.util
import subprocess
import sys

import pytest

from comfyui.serve import PACK, serve

# The trainer by its folder: with the repository on sys.path, ComfyUI's `import nodes` might find the pack's nodes/.
spec = importlib.util.spec_from_file_location("training", PACK / "training" / "__init__.py")
sys.modules["training"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["training"])

CHECKPOINT = "snoopi-shapes.safetensors"
PUBLISHED = "sd_turbo.safetensors"  # the file of the teaching graphs; the demo model takes its place


@pytest.fixture(scope="session")
def untrained_checkpoint(tmp_path_factory):
    """A checkpoint file in the demo model's layout with random weights: it proves wiring, not quality."""
    path = tmp_path_factory.mktemp("checkpoint") / CHECKPOINT
    command = [sys.executable, "-m", "training.shapes", "checkpoint", "--untrained", str(path)]
    subprocess.run(command, cwd=PACK, check=True)
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The server's base directory."""
    return tmp_path_factory.mktemp("comfyui")


@pytest.fixture(scope="session")
def server(base, untrained_checkpoint):
    """A client of a real ComfyUI server that has this pack and the untrained checkpoint, under two names."""
    folder = base / "models" / "checkpoints"
    folder.mkdir(parents=True)
    for name in (CHECKPOINT, PUBLISHED):
        (folder / name).symlink_to(untrained_checkpoint)
    nodes = tuple(PACK / "tests" / "comfyui" / name for name in ("other_width", "graph_nodes"))
    with serve(base, nodes=nodes) as client:
        yield client
