"""Files and folders that appear whole or not at all: temporary name beside the target, fsync, rename; and a folder that
one process alone writes into."""

import glob
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import filelock
import psutil

from .errors import UserError, quoted

LOCK = ".lock"


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


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """On the disk of `path`, gone afterwards."""
    folder = temporary_path(path, ".folder")
    with _told(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_tensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """A .safetensors file, inside `atomic_file`. Raises OSError (disk), as all that writes there does."""
    import safetensors.torch  # with torch, for which nobody who only asks for --help should wait

    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except safetensors.SafetensorError as error:  # how it tells of a full disk
        raise OSError(str(error)) from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, no other process writes into `folder`; its lock ends with the process, however that ends.

    What was made for the lock alone is gone afterwards. Raises UserError where another process holds the folder.
    """
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"Another process is at work in {quoted(folder)}; wait for its end, or give another folder."
        ) from None
    except NotImplementedError:  # some network disks
        print(f"{quoted(folder)}: this disk has no locks, so start no second process in there.", file=sys.stderr)
    except OSError as error:
        raise UserError(f"Cannot write to {quoted(folder)} ({quoted(error.strerror or error)}).") from None
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that is not empty stays; Windows keeps the open file
            (folder / LOCK).unlink()
            for parent in new:  # nothing came of it
                parent.rmdir()
        lock.release()


def check_writable(folder: Path) -> None:
    """Raises UserError unless files can be made in `folder`, or in what is there of the way to it."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = quoted(error.strerror or error)
        raise UserError(f"Cannot write to {quoted(there)} ({reason}); give another --output.") from None


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
