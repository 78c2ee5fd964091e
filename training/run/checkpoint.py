"""Checkpoints of a run: one folder each, one file a role, written whole or not at all.

    RUN/config.yaml
    RUN/checkpoints/step-00001000/   student.safetensors  lora.safetensors  [ema.safetensors]
                                     student_optimizer.pt  lora_optimizer.pt  state.json

state.json is written last and holds the step and every file's size and SHA-256. No random state is stored: every draw
comes from a generator seeded by (seed, step), and the data position is a product of the step, so the step is all of
both.
"""

import hashlib
import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import UserError, quoted
from ..files import atomic_folder

_known_good: set[Path] = set()  # folders that this process wrote or read whole


@dataclass
class Checkpoint:
    """Weights by role (fp32, CPU), optimiser states by role, and the state (`step`, `bad_steps`)."""

    weights: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Any]]
    state: dict[str, Any]


def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes RUN/checkpoints/step-N, then deletes all but the `keep` newest good ones. Raises UserError (disk).

    A folder of a later step is one that `load_newest` refused: it is not counted, and gives way when the run comes to
    that step again. Damaged ones of earlier steps are not counted either, and go once there are `keep` good ones.
    """
    step = checkpoint.state["step"]
    target = folder_of(run, step)
    for unfinished in target.parent.glob(".step-*.part"):  # of a run that was killed while it saved
        shutil.rmtree(unfinished)
    with atomic_folder(target) as folder:
        try:
            for role, tensors in checkpoint.weights.items():
                contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
                safetensors.torch.save_file(contiguous, folder / f"{role}.safetensors")
            for role, optimizer in checkpoint.optimizers.items():
                torch.save(optimizer, folder / f"{role}_optimizer.pt")
        except (RuntimeError, safetensors.SafetensorError) as error:  # how torch and safetensors tell of a full disk
            raise OSError(str(error)) from error
        files = sorted(folder.iterdir())
        told = {"files": {file.name: file.stat().st_size for file in files}, "sha256": _hashes(files)}
        (folder / "state.json").write_text(json.dumps(checkpoint.state | told, indent=1))
    _known_good.add(target)
    earlier, kept = [folder for folder in newest_first(run) if step_of(folder) < step], [target]
    for folder in earlier:
        if len(kept) < keep and _is_good(folder):
            kept.append(folder)
    for folder in earlier:
        if len(kept) == keep and folder not in kept:
            shutil.rmtree(folder)
    return target


def load_newest(run: Path, optimizers: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none. Tells on stderr of each that it passes over.

    Raises UserError where there are some and all are damaged: beginning anew would be a loss too.
    """
    folders = newest_first(run)
    for folder in folders:
        try:
            return load(folder, optimizers)
        except UserError as error:
            if not folder.exists():  # the run went on meanwhile, and deleted it for a newer one
                return load_newest(run, optimizers)
            print(f"{error} Trying the one before.", file=sys.stderr)
    if folders:
        raise UserError(
            f"All {len(folders)} checkpoints of {quoted(run)} are damaged; put good copies in their place, or give "
            f"another --output."
        )
    return None


def load(folder: Path, optimizers: bool = True, checked: bool = False) -> Checkpoint:
    """Reads one checkpoint folder, on wish without the `optimizers`. Raises UserError if it is not whole.

    checked: another process has compared the hashes.
    """
    try:
        state, files = _unchanged(folder, optimizers, checked)
        weights, states = {}, {}
        for file in files:
            if file.suffix == ".safetensors":
                weights[file.stem] = safetensors.torch.load_file(file)
            else:
                role = file.stem.removesuffix("_optimizer")
                states[role] = torch.load(file, map_location="cpu", weights_only=True)
        if "student" not in weights:
            raise ValueError("it has no student")
    except (MemoryError, torch.OutOfMemoryError):  # says nothing of the checkpoint
        raise
    except Exception as error:  # truncated files raise whatever their reader raises
        raise UserError(f"The checkpoint {quoted(folder)} is damaged ({quoted(error)}).") from error
    if optimizers:
        _known_good.add(folder)
    return Checkpoint(weights, states, state)


def _unchanged(folder: Path, optimizers: bool = True, checked: bool = False) -> tuple[dict[str, Any], list[Path]]:
    """The state of a checkpoint, and its files, which have the contents they were written with; else an error."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    sizes, wanted = state.pop("files"), state.pop("sha256", {})  # older ones have sizes alone
    if not all(isinstance(state[key], int) and state[key] >= 0 for key in ("step", "bad_steps")):
        raise ValueError("state.json names no step")
    if state["step"] != step_of(folder):
        raise ValueError(f"state.json is of step {state['step']}")
    files = [folder / Path(name).name for name in sizes if optimizers or not name.endswith("_optimizer.pt")]
    for file in files:
        if file.stat().st_size != sizes[file.name]:
            raise ValueError(f"{file.name} has not the size it was written with")
    for name, found in _hashes(file for file in files if file.name in wanted and not checked).items():
        if found != wanted[name]:
            raise ValueError(f"{name} has not the contents it was written with")
    return state, files


def _is_good(folder: Path) -> bool:
    """Whether it can be gone on from; read once at most in a process, since that takes a while."""
    if folder not in _known_good:
        try:
            _unchanged(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        _known_good.add(folder)
    return True


def newest_first(run: Path) -> list[Path]:
    """The checkpoint folders of a run, damaged ones among them."""
    folders = [folder for folder in (run / "checkpoints").glob("step-*") if step_of(folder) is not None]
    return sorted(folders, key=step_of, reverse=True)


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint folder's name tells; None for any other name."""
    found = re.fullmatch(r"step-(\d{8,18})", folder.name, re.ASCII)
    return int(found[1]) if found else None


def _hashes(files: Any) -> dict[str, str]:
    """{name: SHA-256}, several files at once: hashlib lets other threads run."""

    def read(path: Path) -> tuple[str, str]:
        with path.open("rb") as file:
            return path.name, hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as threads:
        return dict(threads.map(read, files))
