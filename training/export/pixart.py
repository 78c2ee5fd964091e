"""PixArt-alpha as ComfyUI and diffusers read it: diffusers' names, and the tensors that make detection right."""

import torch
from torch import Tensor

from ..errors import UserError

EMBEDDERS = ("resolution_embedder", "aspect_ratio_embedder")


def pixart_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A PixArtTransformer2DModel's state dict with its micro-condition embedders, all zero where it has none.

    Without them ComfyUI takes the file for PixArt-Sigma and scales latents by .13025 instead of .18215. Zeros leave
    the output as it is: each embedder adds a third of the width to the timestep's embedding. Raises UserError.
    """
    timestep = "adaln_single.emb.timestep_embedder.linear_1.weight"
    if timestep not in state:
        raise UserError(f"This is no PixArt transformer: it has no `{timestep}`.")
    frequencies, width = state[timestep].shape[1], state[timestep].shape[0] // 3
    shapes = {
        "linear_1.weight": (width, frequencies),
        "linear_1.bias": (width,),
        "linear_2.weight": (width, width),
        "linear_2.bias": (width,),
    }
    added = {
        f"adaln_single.emb.{embedder}.{name}": torch.zeros(shape, dtype=state[timestep].dtype)
        for embedder in EMBEDDERS
        for name, shape in shapes.items()
    }
    return added | state
