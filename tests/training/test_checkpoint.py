"""Checkpoints under a kill in the middle of a save, a full disk, and damage."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import checkpoint as checkpoints
from training.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def some(step: int) -> checkpoints.Checkpoint:
    weights = {"student": {"w": torch.full((2000,), float(step))}, "lora": {"a": torch.ones(3)}}
    return checkpoints.Checkpoint(weights, {"student": {"state": {0: torch.zeros(5)}}}, {"step": step, "bad_steps": 0})


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """`code` in a fresh process, with `run`, `torch`, `checkpoints` and `some` at hand; step 1 is saved already."""
    prelude = (
        "import os, signal, sys, resource, torch\nfrom pathlib import Path\n"
        "from training import checkpoint as checkpoints\n"
        f"run = Path({str(folder)!r})\n"
        "def some(step): return checkpoints.Checkpoint({'student': {'w': torch.full((2000,), float(step))}},"
        " {'student': {'x': torch.zeros(9000)}}, {'step': step, 'bad_steps': 0})\n"
        "checkpoints.save(run, some(1), 2)\n"
    )
    return subprocess.run([sys.executable, "-c", prelude + code], cwd=REPOSITORY, capture_output=True, text=True)


def test_round_trip_and_rotation(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, some(step), keep=2)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    loaded = checkpoints.load_newest(tmp_path)
    assert loaded.state == {"step": 3, "bad_steps": 0}
    assert torch.equal(loaded.weights["student"]["w"], torch.full((2000,), 3.0))
    assert torch.equal(loaded.optimizers["student"]["state"][0], torch.zeros(5))


def test_killed_in_the_middle_of_a_save(tmp_path):
    code = (
        "def half(value, path):\n"
        "    Path(path).write_bytes(b'half a file')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = half\n"
        "checkpoints.save(run, some(2), 2)\n"
    )
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    assert checkpoints.load_newest(tmp_path).state["step"] == 1
    assert len(list((tmp_path / "checkpoints").glob(".*.part"))) == 1
    checkpoints.save(tmp_path, some(2), 2)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_no_room_for_a_checkpoint_is_a_sentence_and_loses_nothing(tmp_path):
    code = (
        "from training.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: checkpoints.save(run, some(2), 1)\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 1 and "Cannot write" in done.stderr and "Traceback" not in done.stderr
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert checkpoints.load_newest(tmp_path).state["step"] == 1


@pytest.mark.parametrize("name", ["student.safetensors", "student_optimizer.pt", "state.json"])
def test_damaged_newest_gives_way_to_the_one_before(tmp_path, capsys, name):
    checkpoints.save(tmp_path, some(1), keep=2)
    newest = checkpoints.save(tmp_path, some(2), keep=2)
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    assert checkpoints.load_newest(tmp_path).state["step"] == 1
    assert f"The checkpoint {newest} is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load(newest)
    shutil.rmtree(newest)
    assert checkpoints.save(tmp_path, some(2), keep=2).is_dir()
