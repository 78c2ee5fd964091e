"""Where a teacher's parts come from: a diffusers folder, a hub name, or a single .safetensors file."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import UserError
from ..shipped import remedy


def check_source(source: str) -> None:
    """Refuses at once what looks like a local path and is not there, instead of asking the hub for it."""
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return
    if path.is_file():
        raise UserError(f"The teacher {source} is a file, but no .safetensors; save it as one, pickles are not read.")
    hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source)
    beside = path.parts and Path(path.parts[0]).is_dir()  # runs/teacher, where runs/ is here
    if not hub_name or path.suffix in (".safetensors", ".ckpt", ".pt", ".pth") or beside:
        raise UserError(
            f"There is no teacher {source}; give a diffusers folder, a .safetensors file or a hub name{remedy(source)}."
        )


def is_single_file(source: str) -> bool:
    return Path(source).suffix == ".safetensors"


def load_part(load: Callable[..., Any], source: str, folder: str, **options: Any) -> Any:
    """load(source, subfolder=folder): one part of a diffusers folder or hub model; any failure becomes a sentence."""
    local = Path(source)
    if local.exists() and not (local / folder).is_dir():
        raise UserError(
            f"The teacher {source} has no folder {folder}/; give a diffusers folder, as save_pretrained "
            f"writes{remedy(source)}."
        )
    try:
        return load(source, subfolder=folder, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
    except Exception as error:  # safetensors' own error has no better base
        reason = f"{type(error).__name__}: {error}"
    cause = (
        "a file is damaged or missing, copy it again" if local.exists() else "no such folder, nor a model on the hub"
    )
    raise UserError(f"Cannot load {folder} of the teacher {source}: {cause} ({reason}).")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, on the CPU. Raises UserError."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {path}: {error}; the file is missing or damaged.") from None


def fill(network: Any, tensors: dict[str, Tensor], source: str) -> Any:
    """Strictly loads `tensors` into `network`, in its own dtype. Raises UserError if they do not fit."""
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{source} does not fit {type(network).__name__}: {lines[1][:160]}") from None
    return network
