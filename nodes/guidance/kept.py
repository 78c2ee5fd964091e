"""Keeps what was made of a negative prompt from call to call and from picture to picture."""

import weakref
from types import ModuleType

import torch
from comfy.model_patcher import ModelPatcher

#: K- and V- are kept for as many layers as take no more than this part of the model's size.
SHARE = 0.008


class Kept(dict):
    """Emptied by `of` when the model's weights may have changed.

    ComfyUI gives every set of weight patches an identity, patches_uuid, and nodes that change a model in another way
    change a new clone of it: so the same patcher with the same identity has the same weights.

    Args:
        origin: the patcher whose clones, made anew for every picture, have its weights; None for no such patcher.
    """

    def __init__(self, origin: ModelPatcher | None = None):
        super().__init__()
        self._origin = None if origin is None else weakref.ref(origin)
        self._state = None

    def of(self, patcher: ModelPatcher, dtype: torch.dtype) -> "Kept":
        """Itself, holding what was made of this patcher's weights as they are now, computing in `dtype`."""
        state = self._origin or weakref.ref(patcher), patcher.patches_uuid, dtype
        if state != self._state:
            self.clear()
            self._state = state
        return self


_last: "weakref.WeakKeyDictionary[ModelPatcher, tuple[list, Kept]]" = weakref.WeakKeyDictionary()


def kept_for_clones(model: ModelPatcher, negative: list) -> Kept:
    """One Kept for as long as `model` is used with this negative, for a node that clones it for every picture."""
    found = _last.get(model)
    if found is None or found[0] is not negative:
        found = _last[model] = negative, Kept(model)
    return found[1]


def keys_values_within(limit: float, layout: ModuleType, layers: list, text: torch.Tensor) -> dict:
    """(K-, V-) of the first layers, by layer: of as many as together take no more than `limit` bytes."""
    found, size = {}, 0
    for layer in layers if limit > 0 and hasattr(layout, "keys_values") else ():
        parts = layout.keys_values(layer, text)
        size += sum(part.numel() * part.element_size() for part in parts)
        if size > limit:
            break
        found[layer] = parts
    return found
