"""What is known of the files a model came from: their names, and what the safetensors among them say of themselves."""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import folder_paths
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open

KEY = "snoopi_file"
FOLDERS = ("checkpoints", "diffusion_models", "loras", "unet_gguf")
ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


@dataclass(frozen=True)
class ModelFile:
    """A model's file: its name below one of ComfyUI's folders, and its safetensors metadata."""

    name: str
    metadata: dict[str, str] = field(default_factory=dict, hash=False)


def remember(model: ModelPatcher, file: ModelFile) -> None:
    """Note on a model that was just loaded where it came from; its clones know it too."""
    model.set_attachments(KEY, file)


def files_of(model: ModelPatcher, prompt: dict | None, node_id: str | None) -> list[ModelFile]:
    """Every file known to be part of `model`, the nearest to the node `node_id` first.

    Args:
        prompt: the graph that runs, as ComfyUI's hidden input PROMPT gives it; None if there is none.
    """
    files = [ModelFile(name, _metadata(name)) for name in _upstream(prompt or {}, str(node_id))]
    remembered = model.get_attachment(KEY)
    if remembered is not None:
        files = [file for file in files if file.name != remembered.name] + [remembered]
    return files


def _upstream(prompt: dict, node_id: str) -> Iterator[str]:
    """The names of model files chosen in the nodes that the input `model` hangs on, nearest first."""
    seen, waiting = set(), [node_id]
    while waiting:
        node_id = waiting.pop(0)
        if node_id in seen or node_id not in prompt:
            continue
        inputs = prompt[node_id].get("inputs", {})
        if seen:
            yield from (
                value for value in inputs.values() if isinstance(value, str) and value.lower().endswith(ENDINGS)
            )
        seen.add(node_id)
        links = {name: value for name, value in inputs.items() if isinstance(value, list) and len(value) == 2}
        models = [link for name, link in links.items() if name.startswith("model")]
        waiting += [str(source) for source, _ in models or links.values()]


def _metadata(name: str) -> dict[str, str]:
    for folder in FOLDERS:
        path = folder_paths.get_full_path(folder, name) if folder in folder_paths.folder_names_and_paths else None
        if path is not None:
            return read_metadata(path)
    return {}


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of a safetensors file; empty for another file, or one that cannot be read."""
    if not path.lower().endswith((".safetensors", ".sft")):
        return {}
    try:
        status = os.stat(path)
        return _read_metadata(path, status.st_mtime_ns, status.st_size)
    except (OSError, SafetensorError):
        return {}


@functools.lru_cache(maxsize=64)
def _read_metadata(path: str, mtime: int, size: int) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
