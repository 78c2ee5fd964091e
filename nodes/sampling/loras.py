"""Which LoRA files act on a model: the weights that it carries are compared with those in the files.

A name in the graph proves nothing: the LoRA may be switched off, of strength 0, for the text encoder alone, on another
model, or come through a stack. What the model carries is the truth.
"""

import weakref
from collections.abc import Iterable

import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open

from .files import SAFETENSORS, stamp

#: How the weights of a LoRA file end that are added as they are.
DIFFERENCES = (".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight")


_last: "weakref.WeakKeyDictionary[BaseModel, tuple[tuple, tuple]]" = weakref.WeakKeyDictionary()


def loras_of(model: ModelPatcher, paths: Iterable[str]) -> tuple[dict[str, float], bool]:
    """The files among `paths` that act on the model with their strength, and whether another LoRA does too.

    Weights that the model carries without having them from a file (a merge of models, see `is_merged`) are no LoRA.
    """
    if not model.patches:
        return {}, "bypass_lora" in model.injections
    paths = list(dict.fromkeys(paths))
    state = model.patches_uuid, [(path, stamp(path)) for path in paths]
    before, found = _last.get(model.model, (None, None))
    if before != state:  # of an SDXL model this takes 60 ms a LoRA
        found = _compare(model, paths)
        _last[model.model] = state, found
    return found


def is_merged(model: ModelPatcher) -> bool:
    """Whether a node such as ModelMergeSimple mixed the weights of another model in."""
    return any(isinstance(weights, list) for entries in model.patches.values() for _, weights, *_ in entries)


def _compare(model: ModelPatcher, paths: list[str]) -> tuple[dict[str, float], bool]:
    strengths = {
        id(adapter): (strength, adapter)
        for entries in model.patches.values()
        for strength, adapter, *_ in entries
        if strength != 0 and not isinstance(adapter, list)
    }
    adapters = [adapter for _, adapter in strengths.values()]
    found = {}
    for path in paths:
        left = _without(adapters, path) if adapters else adapters
        if len(left) < len(adapters):
            kept = {id(adapter) for adapter in left}
            found[path] = max((strengths[id(one)][0] for one in adapters if id(one) not in kept), key=abs)
            adapters = left
    return found, bool(adapters) or "bypass_lora" in model.injections


def _without(adapters: list, path: str) -> list:
    """The adapters that did not come from the file at `path`."""
    try:
        if path.lower().endswith(SAFETENSORS):
            with safe_open(path, framework="pt") as file:
                return _not_in(adapters, {name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118
        return _not_in(adapters, comfy.utils.load_torch_file(path, safe_load=True))
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return adapters


def _not_in(adapters: list, tensors: dict) -> list:
    differences = [name for name in tensors if name.endswith(DIFFERENCES)]
    return [adapter for adapter in adapters if not _holds(tensors, differences, adapter)]


def _holds(tensors: dict, differences: list[str], adapter) -> bool:
    """Whether a file holds an adapter's weights. Of matrices the first rows are compared: all would take too long."""
    if isinstance(adapter, tuple):  # ("diff", (weights,)), which does not tell its name in the file
        names, parts = differences, adapter[1] if len(adapter) > 1 else ()
    else:
        names, parts = getattr(adapter, "loaded_keys", ()), getattr(adapter, "weights", ())
    parts = [part for part in parts if torch.is_tensor(part) and part.ndim]
    if not parts or not tensors.keys() >= set(names):
        return False
    heads = [_head(tensors[name]) for name in names]
    return all(any(_same(_head(part), head) for head in heads) for part in parts)


def _head(tensor) -> torch.Tensor:
    """The first row, or all of what has no rows, of a tensor or of one that still lies in a file."""
    dimensions = tensor.ndim if torch.is_tensor(tensor) else len(tensor.get_shape())
    return tensor[:1] if dimensions > 1 else tensor[...]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float().cpu(), other.float().cpu())
