"""Checkpoints under a kill in the middle of a save, a full disk, and damage."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.errors import UserError
from training.run import checkpoint as checkpoints

REPOSITORY = Path(__file__).parents[2]


def some(step: int) -> checkpoints.Checkpoint:
    weights = {"student": {"w": torch.full((2000,), float(step))}, "lora": {"a": torch.ones(3)}}
    return checkpoints.Checkpoint(weights, {"student": {"state": {0: torch.zeros(5)}}}, {"step": step, "bad_steps": 0})


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess:
    """`code` in a fresh process, with `run`, `torch`, `checkpoints` and `some` at hand; step 1 is saved already."""
    prelude = (
        "import os, signal, sys, resource, torch\nfrom pathlib import Path\n"
        "from training.run import checkpoint as checkpoints\n"
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


@pytest.mark.parametrize("name", ["student.safetensors", "student_optimizer.pt", "lora.safetensors"])
def test_one_changed_byte_of_the_same_size_is_damage(tmp_path, capsys, name):
    checkpoints.save(tmp_path, some(1), keep=2)
    newest = checkpoints.save(tmp_path, some(2), keep=2)
    content = bytearray((newest / name).read_bytes())
    content[-1 if name.endswith("safetensors") else len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    assert checkpoints.load_newest(tmp_path).state["step"] == 1
    assert f"{name} has not the contents it was written with" in capsys.readouterr().err


def test_a_checkpoint_of_an_older_trainer_without_hashes_still_loads(tmp_path):
    folder = checkpoints.save(tmp_path, some(1), keep=1)
    state = json.loads((folder / "state.json").read_text())
    assert len(state.pop("sha256")) == 3
    (folder / "state.json").write_text(json.dumps(state))
    assert checkpoints.load(folder).state == {"step": 1, "bad_steps": 0}


def damage(folder: Path) -> None:
    (folder / "student.safetensors").write_bytes(b"cut")


def steps_kept(run: Path) -> list[int]:
    return [checkpoints.step_of(folder) for folder in checkpoints.newest_first(run)][::-1]


def test_what_was_just_written_is_never_deleted_for_a_damaged_later_one(tmp_path):
    """The newest is damaged, keep is 1, the run goes on from the one before and is stopped soon after."""
    checkpoints.save(tmp_path, some(50), keep=2)
    damage(checkpoints.save(tmp_path, some(100), keep=2))
    assert checkpoints.load_newest(tmp_path).state["step"] == 50
    checkpoints.save(tmp_path, some(51), keep=1)
    assert steps_kept(tmp_path) == [51, 100]
    assert checkpoints.load_newest(tmp_path).state["step"] == 51
    checkpoints.save(tmp_path, some(100), keep=1)  # the damaged one gives way
    assert steps_kept(tmp_path) == [100] and checkpoints.load_newest(tmp_path).state["step"] == 100
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("again", [False, True], ids=["the same process", "a new process"])
def test_damaged_ones_are_not_kept_in_place_of_good_ones(tmp_path, again):
    checkpoints.save(tmp_path, some(10), keep=9)
    for step in (20, 30):
        damage(checkpoints.save(tmp_path, some(step), keep=9))
    checkpoints._known_good.clear()
    assert checkpoints.load_newest(tmp_path).state["step"] == 10
    checkpoints.save(tmp_path, some(15), keep=2)
    assert steps_kept(tmp_path) == [10, 15, 20, 30]
    if again:
        checkpoints._known_good.clear()
    checkpoints.save(tmp_path, some(40), keep=3)
    assert steps_kept(tmp_path) == [10, 15, 40]
    checkpoints.save(tmp_path, some(50), keep=1)
    assert steps_kept(tmp_path) == [50]


def test_a_killed_or_full_rewrite_of_a_step_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, some(1), keep=1)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device; nothing that was there is lost"):
        checkpoints.save(tmp_path, some(1), keep=1)
    assert checkpoints.load_newest(tmp_path).state["step"] == 1


def test_all_damaged_is_a_sentence_and_not_a_new_beginning(tmp_path):
    for step in (1, 2):
        damage(checkpoints.save(tmp_path, some(step), keep=2))
    with pytest.raises(UserError, match="All 2 checkpoints of .* are damaged"):
        checkpoints.load_newest(tmp_path)
    assert steps_kept(tmp_path) == [1, 2]


def test_too_little_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, some(1), keep=1)
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        checkpoints.load_newest(tmp_path)


@pytest.mark.parametrize(
    "state",
    [
        [],
        {"files": {}},
        {"step": 2, "bad_steps": 0, "files": {"student.safetensors": 1}},
        {"step": 1, "bad_steps": "no", "files": {}},
        {"step": 1, "bad_steps": 0, "files": {"/etc/passwd": 1}},
        {"step": 1, "bad_steps": 0, "files": {"../../secret.safetensors": 1}},
        {"step": 1, "bad_steps": 0, "files": 5},
        {"step": 1, "bad_steps": 0, "files": {}},
    ],
    ids=str,
)
def test_an_odd_state_is_damage(tmp_path, state):
    folder = checkpoints.save(tmp_path, some(1), keep=1)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.load(folder)
