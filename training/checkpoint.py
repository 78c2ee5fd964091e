"""Checkpoints of a run: one folder each, one file a role, written whole or not at all.

    RUN/config.yaml
    RUN/checkpoints/step-00001000/   student.safetensors  lora.safetensors  [ema.safetensors]
                                     student_optimizer.pt  lora_optimizer.pt  state.json

state.json is written last and holds the step and every file's size. No random state is stored: every draw comes from
a generator seeded by (seed, step), and the data position is a product of the step, so the step is all of both.
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .atomic import atomic_folder
from .errors import UserError


@dataclass
class Checkpoint:
    """Weights by role (fp32, CPU), optimiser states by role, and the state (`step`, `bad_steps`)."""

    weights: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[str, Any]]
    state: dict[str, Any]


def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes RUN/checkpoints/step-N, then deletes all but the `keep` newest. Raises UserError, losing nothing."""
    root = run / "checkpoints"
    target = root / f"step-{checkpoint.state['step']:08d}"
    if target.exists():  # already saved, or found broken on resume
        shutil.rmtree(target)
    for unfinished in root.glob(".step-*.part"):  # of a run that was killed while it saved
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
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        (folder / "state.json").write_text(json.dumps(checkpoint.state | {"files": files}, indent=1))
    for old in _newest_first(root)[keep:]:
        shutil.rmtree(old)
    return target


def load_newest(run: Path, optimizers: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none. Tells on stderr of each that it passes over."""
    for folder in _newest_first(run / "checkpoints"):
        try:
            return load(folder, optimizers)
        except UserError as error:
            print(f"{error} Trying the one before.", file=sys.stderr)
    return None


def load(folder: Path, optimizers: bool = True) -> Checkpoint:
    """Reads one checkpoint folder, on wish without the `optimizers`. Raises UserError if it is not whole."""
    try:
        state = json.loads((folder / "state.json").read_text())
        for name, size in state.pop("files").items():
            if (folder / name).stat().st_size != size:
                raise OSError(f"{name} has not the size it was written with")
        weights = {file.stem: safetensors.torch.load_file(file) for file in folder.glob("*.safetensors")}
        states = {
            file.stem.removesuffix("_optimizer"): torch.load(file, map_location="cpu", weights_only=True)
            for file in (folder.glob("*_optimizer.pt") if optimizers else ())
        }
    except Exception as error:  # truncated files raise whatever their reader raises
        raise UserError(f"The checkpoint {folder} is damaged ({error}).") from error
    return Checkpoint(weights, states, state)


def _newest_first(root: Path) -> list[Path]:
    folders = [folder for folder in root.glob("step-*") if re.fullmatch(r"step-\d{8,}", folder.name)]
    return sorted(folders, key=lambda folder: int(folder.name[5:]), reverse=True)
