"""SD 3.x from diffusers' names to the original layout that ComfyUI's CheckpointLoaderSimple reads.

Names derived from the keys themselves, so transformers of any depth and width are covered; ComfyUI knows those whose
width is 64 times their depth. Queries, keys and values become one matrix, and where the original keeps shift before
scale the two halves change places. Knows neither runs nor files.
"""

import re

import torch
from torch import Tensor

from ..errors import UserError, quoted
from .stable_diffusion import UNET, VAE, autoencoder_state

LATENTS = (1.5305, 0.0609)  # the scale and shift of every SD 3.x latent in ComfyUI
#: {folder of a diffusers model: where its text encoder goes}
TEXT = {
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
OUTSIDE = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
INSIDE = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
JOINED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
PART_OF = {part: whole for whole, parts in JOINED.items() for part in parts}
BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


def stable_diffusion3_checkpoint(
    transformer: dict[str, Tensor],
    vae: dict[str, Tensor],
    text_encoders: dict[str, dict[str, Tensor]],
    scaling_factor: float,
    shift_factor: float,
) -> dict[str, Tensor]:
    """One SD 3.x single-file checkpoint from the state dicts of diffusers and transformers.

    vae: of AutoencoderKL or AutoencoderTiny, with its config's two factors. text_encoders: by their folders' names,
    those that there are. Raises UserError for a tensor without a place, or an AutoencoderKL of other factors than SD
    3.x has.
    """
    checkpoint = transformer_state(transformer)
    autoencoder = autoencoder_state(vae, scaling_factor, shift_factor, LATENTS)
    checkpoint |= {VAE + key: tensor for key, tensor in autoencoder.items()}
    for folder, state in text_encoders.items():
        for key, tensor in state.items():
            if folder == "text_encoder_3":
                name = key
            else:  # transformers >= 5.6 leaves out text_model., the original layout wants it
                name = key if key == "text_projection.weight" else "text_model." + key.removeprefix("text_model.")
            if name != "encoder.embed_tokens.weight":  # T5's shared.weight once more
                checkpoint[TEXT[folder] + name] = tensor
    return checkpoint


def transformer_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer below `model.diffusion_model.`, as ComfyUI's UNETLoader and diffusers' from_single_file read it.

    Raises UserError for a tensor without a place.
    """
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    blocks = [int(found[1]) for key in state if (found := BLOCK.fullmatch(key))]
    for key, tensor in state.items():
        if found := BLOCK.fullmatch(key):
            number, module, kind = found.groups()
            place = f"joint_blocks.{number}."
            if module in PART_OF:
                parts.setdefault(f"{place}{PART_OF[module]}.{kind}", {})[module] = tensor
                continue
            if module == "norm1_context.linear" and int(number) == max(blocks):  # it has no gates
                tensor = _halves_swapped(tensor)
            name = INSIDE.get(module) and f"{place}{INSIDE[module]}.{kind}"
        else:
            module, _, kind = key.rpartition(".")
            name = OUTSIDE.get(key) or (OUTSIDE.get(module) and f"{OUTSIDE[module]}.{kind}")
            if module == "norm_out.linear":
                tensor = _halves_swapped(tensor)
        if not name:
            raise UserError(f"No place in the SD 3.x layout for `{quoted(key)}`; only SD 3 and 3.5 can be exported.")
        converted[name] = tensor
    for name, found in parts.items():
        converted[name] = torch.cat([found[part] for part in JOINED[name.split(".", 2)[2].rpartition(".")[0]]])
    return {UNET + name: tensor for name, tensor in converted.items()}


def _halves_swapped(tensor: Tensor) -> Tensor:
    """diffusers' AdaLayerNormContinuous gives scale, then shift."""
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])
