"""A student trained as a LoRA, as a file for ComfyUI's LoraLoader and diffusers."""

import torch
from torch import Tensor

from ..errors import UserError, quoted

DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # peft's names; the change of a weight is scale * up @ down


def is_lora(state: dict[str, Tensor]) -> bool:
    """Whether a student's state dict holds an adapter instead of whole weights."""
    return any(key.endswith(DOWN) for key in state)


def pairs(state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (down, up)} of an adapter under clean names. Raises UserError for anything that is no plain LoRA."""
    layers = {key.removesuffix(DOWN).removesuffix(UP) for key in state if key.endswith((DOWN, UP))}
    odd = [key for key in state if not key.endswith((DOWN, UP))]
    odd += [layer for layer in layers if layer + DOWN not in state or layer + UP not in state]
    if odd:
        raise UserError(f"The student's LoRA has `{quoted(odd[0])}`, which is no pair of lora_A and lora_B.")
    return {layer: (state[layer + DOWN], state[layer + UP]) for layer in sorted(layers)}


def kohya_lora(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """For UNets: `lora_unet_` and the layer's diffusers name with underscores, as kohya-ss writes.

    scale: alpha / rank; it goes into the upper matrix, so that a reader without alpha applies the LoRA as trained.
    """
    converted = {}
    for layer, (down, up) in pairs(state).items():
        name = "lora_unet_" + layer.replace(".", "_")
        converted |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up * scale}
        converted[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return converted


def peft_lora(state: dict[str, Tensor], scale: float, prefix: str = "base_model.model.") -> dict[str, Tensor]:
    """For transformers: peft's own names, which ComfyUI knows too; scale (alpha / rank) goes into the upper matrix.

    Read it with `peft.set_peft_model_state_dict` into a LoraConfig whose lora_alpha equals its r. With the prefix
    "transformer." instead, as diffusers writes it for SD 3.x, `load_lora_weights` of its pipeline reads it.
    """
    converted = {}
    for layer, (down, up) in pairs(state).items():
        converted |= {f"{prefix}{layer}{DOWN}": down, f"{prefix}{layer}{UP}": up * scale}
    return converted
