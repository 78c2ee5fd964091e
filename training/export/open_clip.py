"""SD 2.x's text encoder from transformers' names to OpenCLIP's, as the original SD 2.x checkpoints have it."""

import re

import torch
from torch import Tensor

from ..errors import UserError, quoted

WIDTH, LAYERS = 1024, 24  # OpenCLIP ViT-H; diffusers leaves out the last layer, whose output SD 2.x never uses
OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
INSIDE = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def open_clip_state(state: dict[str, Tensor], depth: int = LAYERS) -> dict[str, Tensor]:
    """OpenCLIP names, without a prefix, of a CLIPTextModel's state dict (with or without `text_model.`).

    Queries, keys and values become one matrix [3 * width, width]. Missing layers up to `depth`, the 24th of SD 2.x,
    are filled with zeros, which pass their input on: ComfyUI reads the output of the 23rd and would warn of missing
    keys.
    """
    converted: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    layers = 0
    for key, tensor in state.items():
        key = key.removeprefix("text_model.")
        if key == "embeddings.position_ids":  # a constant that older versions of transformers save
            continue
        if key in OUTSIDE:
            converted[OUTSIDE[key]] = tensor
            continue
        match = LAYER.fullmatch(key)
        if not match:
            raise UserError(f"No place in the SD 2.x layout for the text encoder's `{quoted(key)}`; it is no OpenCLIP.")
        number, module, kind = match.groups()
        layers = max(layers, int(number) + 1)
        block = f"transformer.resblocks.{number}"
        if module in INSIDE:
            converted[f"{block}.{INSIDE[module]}.{kind}"] = tensor
        else:
            projections.setdefault(f"{block}.attn.in_proj_{kind}", {})[module] = tensor
    for name, parts in projections.items():
        converted[name] = torch.cat([parts[f"self_attn.{letter}_proj"] for letter in "qkv"])
    last = f"transformer.resblocks.{layers - 1}."
    for name in [name for name in converted if name.startswith(last)]:
        for number in range(layers, depth):
            converted[name.replace(last, f"transformer.resblocks.{number}.")] = torch.zeros_like(converted[name])
    return converted
