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
    """

    def __init__(self):
        super().__init__()
        self._state = None

    def of(self, patcher: ModelPatcher, dtype: torch.dtype) -> "Kept":
        """Itself, holding what was made of this patcher's weights as they are now, computing in `dtype`."""
        state = weakref.ref(patcher), patcher.patches_uuid, dtype
        if state != self._state:
            self.clear()
            self._state = state
        return self


def keys_values_within(limit: float, layout: ModuleType, layers: list, text: torch.Tensor) -> dict:
    """(K-, V-) of the first layers, by layer: of as many as together take no more than `limit` bytes."""
    found, size = {}, 0
    for layer in layers if limit > 0 else ():
        parts = layout.keys_values(layer, text)
        size += sum(part.numel() * part.element_size() for part in parts)
        if size > limit:
            break
        found[layer] = parts
    return found
