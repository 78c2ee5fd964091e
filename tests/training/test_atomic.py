"""What a killed process left beside a file is gone after the next write; what a living one writes is not touched."""

import os
import subprocess
import sys

import pytest

from training.errors import UserError
from training.files import atomic_file, atomic_folder


@pytest.fixture
def dead() -> int:
    """The number of a process that is over."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("kind", ["", ".folder"])
@pytest.mark.parametrize("same_number", [False, True])
def test_leftovers_of_the_dead_are_swept(tmp_path, dead, kind, same_number):
    """Also where the killed process had the number of this one, as in a container."""
    dead = os.getpid() if same_number else dead
    left, alive, other = (
        tmp_path / name for name in (f".a.st{kind}.{dead}.part", f".a.st.{os.getppid()}.part", ".b.1")
    )
    left.mkdir() if kind else left.write_text("half")
    (left / "half").write_text("") if kind else None
    for file in alive, other:
        file.write_text("kept")
    with atomic_file(tmp_path / "a.st") as temporary:
        temporary.write_text("whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([alive.name, other.name, "a.st"])
    assert (tmp_path / "a.st").read_text() == "whole"


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(UserError, match="Cannot write .*file: no room; nothing that was there is lost"):
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise OSError("no room")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "half").write_text("")
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
