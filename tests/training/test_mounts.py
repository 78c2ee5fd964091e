"""Two processes that see the run folder at two places, as two machines do: one folder trains, two are refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from training.run.checkpoint import load_newest

REPOSITORY = Path(__file__).parents[2]

# Each process of a run is a fork, which has everything imported.
RUNNER = """
import json, os, sys
from training.distill import distill
from training.errors import UserError
from training.recipe.config import parse
from training.run import machine
machine.LATE = 0.5
for port, settings in json.load(sys.stdin):
    children = []
    for rank, own in enumerate(settings):
        if not (child := os.fork()):
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
            told, code = "trained", 0
            try:
                distill(parse(own), resume=True)
            except UserError as error:
                told, code = str(error), 2
            os.write(1, f"{told}\\n".encode())
            os._exit(code)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    os.write(1, b"--\\n")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_two_mounts_of_one_folder_train_and_two_folders_are_refused_in_a_sentence(settings, tmp_path):
    short = settings | {"warm_start": None, "steps": 1, "sample_every": 9, "samples_per_prompt": 2}
    for mount in ("a", "b"):
        (tmp_path / f"{mount}-mount").mkdir()
    (tmp_path / "disk").mkdir()
    for mount in ("c", "d"):
        (tmp_path / f"{mount}-mount").symlink_to(tmp_path / "disk")
    runs = [
        (free_port(), [short | {"output": str(tmp_path / f"{mount}-mount/run")} for mount in pair])
        for pair in ("ab", "cd", "cd")  # the last one goes on, with nothing left to do
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=REPOSITORY, env=environment, input=json.dumps(runs), capture_output=True,
        text=True, timeout=500,
    )  # fmt: skip
    refused, trained, again = (part.splitlines() for part in done.stdout.split("--\n")[:3])
    assert len(refused) == 2, done.stderr[-3000:]
    for sentence in refused:
        assert "run is not one folder for all 2 processes (another one for number 1, counted from 0)" in sentence
        assert "give an --output on a disk that all machines share" in sentence
    assert trained == again == ["trained", "trained"], done.stderr[-3000:]
    assert not (tmp_path / "a-mount/run").exists() or not any((tmp_path / "a-mount/run").iterdir())
    assert not list((tmp_path / "disk/run").glob(".seen-*"))
    assert load_newest(tmp_path / "disk/run").state["step"] == 2
