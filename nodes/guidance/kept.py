"""Keeps what was made of a negative prompt from call to call and from picture to picture."""

import weakref
from types import ModuleType

import torch
from comfy.model_patcher import ModelPatcher

#: K- and V- are kept if they take no more than this part of the model's size.
SHARE = 0.01


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


def keys_values_within(limit: float, layout: ModuleType, layers: list, text: torch.Tensor) -> dict | None:
    """(K-, V-) by layer; None if together they take more than `limit` bytes, which is found out without taking them."""
    found, size = {}, 0
    for layer in layers:
        if size > limit:
            return None
        found[layer] = layout.keys_values(layer, text)
        size += sum(part.numel() * part.element_size() for part in found[layer])
    return found if size <= limit else None
