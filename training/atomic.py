"""Files and folders that appear whole or not at all: temporary name beside the target, fsync, rename."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from .errors import UserError, quoted


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write; on success it replaces `path`, on any error it is removed.

    Raises UserError when the disk refuses; what was at `path` before is then untouched.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder and all files in it."""
    path = Path(path)
    temporary, before = temporary_path(path), temporary_path(path, ".before")
    with _told(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
            _flush(temporary)
            if path.exists():
                os.rename(path, before)
            os.rename(temporary, path)
            _flush(path.parent)
            shutil.rmtree(before, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(path: Path, kind: str = "") -> Path:
    """Beside `path`, of this process alone. What killed processes left under such names for `path` is deleted."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        process = left.name.split(".")[-2]
        # In a container a killed process and the one that follows it may well have the same number.
        if process.isdigit() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
            with suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f".{path.name}{kind}.{os.getpid()}.part")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = quoted(error.strerror or error)
        raise UserError(f"Cannot write {quoted(path)}: {reason}; nothing that was there is lost.") from error
