"""The files that models are loaded from: where they lie, and what the safetensors among them say of themselves."""

import functools
import json
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import folder_paths
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open

from .weights import holds

KEY = "snoopi_file"
PREFIX = "snoopi."
#: The only value of `snoopi.format` so far.
FORMAT = "1"
#: A tensor of this name holds what a file says of itself where ComfyUI writes the metadata (saved.py).
WORDS = "snoopi.metadata"
#: How the weights of a LoRA begin that change a text encoder.
TEXT_LAYERS = ("lora_te", "text_encoder", "text_model", "te1", "te2", "clip_l", "clip_g")
WHOLE = ("checkpoints", "diffusion_models", "unet_gguf")
LORAS = ("loras",)
SAFETENSORS = (".safetensors", ".sft")
ENDINGS = (*SAFETENSORS, ".ckpt", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True)
class ModelFile:
    """A model's file.

    name: below one of ComfyUI's folders.
    metadata: of its safetensors, as it was when the model was loaded.
    chosen: the preset that the user chose for it in the SNOOPI Checkpoint Loader.
    changed: whether the file on the disk is no longer the one that was loaded.
    strength: at which it acts, for a LoRA.
    changes_text: whether it is a LoRA that changes a text encoder too.
    """

    name: str
    metadata: dict[str, str] = field(default_factory=dict, hash=False)
    chosen: str | None = None
    changed: bool = False
    strength: float = 1.0
    changes_text: bool = False


def remember(model: ModelPatcher, file: ModelFile) -> None:
    """Note on a model that was just loaded where it came from; its clones know it too."""
    model.set_attachments(KEY, file)


def remembered(model: ModelPatcher) -> ModelFile | None:
    return model.get_attachment(KEY)


def path_of(name: object, folders: tuple[str, ...]) -> str | None:
    """The path of the file called `name`, or "folder/name", in one of ComfyUI's folders; None if there is none."""
    if not isinstance(name, str) or not name.lower().endswith(ENDINGS) or len(name) > 1024:
        return None
    for folder in folders:
        for inside in (name, name.replace("\\", "/").removeprefix(f"{folder}/")):
            if path := folder_paths.get_full_path(folder, inside):
                return path
    return None


def name_of(path: str) -> str:
    """A path without ComfyUI's folder that it lies in."""
    for folder in (*WHOLE, *LORAS):
        for root in folder_paths.folder_names_and_paths.get(folder, ([],))[0]:
            if Path(path).is_relative_to(root):
                return str(Path(path).relative_to(root))
    return Path(path).name


_seen: "weakref.WeakKeyDictionary[BaseModel, dict[str, tuple[ModelFile, tuple]]]" = weakref.WeakKeyDictionary()


def file_of(model: ModelPatcher, path: str) -> ModelFile:
    """The file that a stock loader loaded `model` from, as it was when this model was first asked about.

    Stock loaders keep a model when its file changes, so what the file says by then is of another model.
    """
    seen = _seen.setdefault(model.model, {})
    now = stamp(path)
    if path not in seen:
        file = ModelFile(name_of(path), read_metadata(path))
        if any(key.startswith(PREFIX) for key in file.metadata) and holds(path, model) is False:
            file, now = ModelFile(file.name), None
        seen[path] = file, now
    file, then = seen[path]
    return file if then == stamp(path) else ModelFile(file.name, file.metadata, changed=True)


def stamp(path: str) -> tuple[int, int] | None:
    """What differs once a file is written anew: its time in ns and its size; None if it is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of a safetensors file; empty for another file, or one that cannot be read."""
    now = stamp(path)
    if now is None or not path.lower().endswith(SAFETENSORS):
        return {}
    try:
        return _read_metadata(path, now)
    except (OSError, SafetensorError):
        return {}


def changes_text(path: str) -> bool:
    """Whether a LoRA's file changes a text encoder too."""
    return _changes_text(path, stamp(path))


@functools.lru_cache(maxsize=64)
def _changes_text(path: str, now: tuple[int, int] | None) -> bool:
    if now is None or not path.lower().endswith(SAFETENSORS):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return any(key.startswith(TEXT_LAYERS) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


@functools.lru_cache(maxsize=64)
def _read_metadata(path: str, now: tuple[int, int]) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        if WORDS in file.keys() and file.get_slice(WORDS).get_shape()[:1] < [65536]:  # noqa: SIM118
            metadata |= _words(bytes(file.get_tensor(WORDS).flatten().to(torch.uint8).tolist()))
    return metadata


def _words(encoded: bytes) -> dict[str, str]:
    try:
        words = json.loads(encoded)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in words.items()} if isinstance(words, dict) else {}
