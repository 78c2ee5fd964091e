"""The encoded prompts of a run, kept in its folder, so that a later start need not encode them again.

RUN/prompts.safetensors     embeddings, mask and pooled of a Text; in its metadata what they were made of, and the
                            SHA-256 of all numbers
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from ..errors import quoted
from ..files import atomic_file, save_tensors
from ..networks.text import Text

FILE = "prompts.safetensors"


def kept(path: Path, made_of: str, device: torch.device, make: Callable[[], Text]) -> Text:
    """The Text in that file, else of `make`, which is written there. made_of: whatever changes what `make` gives.

    Tells on stderr where a file is there and is damaged or of other contents. Raises UserError (disk).
    """
    if path.exists():
        try:
            return _read(path, made_of).to(device)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            print(f"{quoted(path)} is not used: {quoted(error)}; the prompts are encoded again.", file=sys.stderr)
    text = make()
    parts = {name: part.to("cpu").contiguous() for name, part in vars(text).items() if part is not None}
    with atomic_file(path) as temporary:
        save_tensors(temporary, parts, {"made_of": made_of, "sha256": _digest(parts)})
    return text


def _read(path: Path, made_of: str) -> Text:
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata() or {}
        if told.get("made_of") != made_of:
            raise ValueError("it is of other prompts or another text encoder")
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if told.get("sha256") != _digest(parts):
        raise ValueError("it is damaged")
    return Text(**parts)


def _digest(parts: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, part in sorted(parts.items()):
        found.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
        found.update(part.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
