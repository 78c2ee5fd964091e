"""Which tests run, and in which order; one running ComfyUI for all that talk to one, with the demo model's layout and
random weights."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from comfyui.serve import PACK, serve
from tiers import LONGEST, TIERS, tier_of, tiers_below

# The trainer by its folder: with the repository on sys.path, ComfyUI's `import nodes` might find the pack's nodes/.
spec = importlib.util.spec_from_file_location("training", PACK / "training" / "__init__.py")
sys.modules["training"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["training"])

HERE = Path(__file__).parent
CHECKPOINT = "snoopi-shapes.safetensors"
PUBLISHED = "sd_turbo.safetensors"  # the file of the teaching graphs; the demo model takes its place


def pytest_addoption(parser):
    tiers = "; ".join(f"{tier}: {needs}" for tier, needs in TIERS.items())
    parser.addoption("--tiers", type=chosen_tiers, help=f"run these alone, with commas between them ({tiers})")


def chosen_tiers(text):
    chosen = set(text.split(","))
    if unknown := chosen - set(TIERS):
        raise argparse.ArgumentTypeError(f"{min(unknown)} is no tier; there are {', '.join(TIERS)}")
    return chosen


def pytest_ignore_collect(collection_path, config):
    chosen, path = config.getoption("--tiers"), collection_path.relative_to(HERE).as_posix()
    if not chosen or collection_path == HERE:
        return None
    found = tiers_below(f"{path}/") if collection_path.is_dir() else {tier_of(path)}
    return None if found & chosen else True


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # one of several processes
        place = {HERE / path: number for number, path in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_folder(request, tmp_path_factory):
    """A folder of this run of the tests, one for all of its processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def untrained_checkpoint(shared_folder):
    """A checkpoint file in the demo model's layout with random weights: it proves wiring, not quality."""
    path = shared_folder / CHECKPOINT
    with FileLock(shared_folder / "checkpoint.lock"):
        if not path.exists():
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
