"""Stable Diffusion from diffusers' names to the original layout that ComfyUI's CheckpointLoaderSimple reads.

Names only, derived from the keys themselves, so UNets and autoencoders of any depth and width are covered. Knows
neither runs nor files. The text encoder of SD 2.x is in open_clip.py.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import UserError, quoted
from . import open_clip

UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.text_model.", "first_stage_model."
OPEN_CLIP = "cond_stage_model.model."  # SD 2.x's text encoder, instead of TEXT
LATENT_SCALE = 0.18215  # by which ComfyUI divides every SD 1.x latent before its autoencoder sees it
LATENTS = (LATENT_SCALE, 0.0)  # and what it adds then

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def stable_diffusion_checkpoint(
    unet: dict[str, Tensor], vae: dict[str, Tensor], text_encoder: dict[str, Tensor], scaling_factor: float
) -> dict[str, Tensor]:
    """One SD 1.x or 2.x single-file checkpoint from three diffusers/transformers state dicts.

    vae: of AutoencoderKL or AutoencoderTiny (told apart by their keys); scaling_factor: the `vae.config` value, by
    which diffusers divides latents. Raises UserError for an AutoencoderKL whose factor ComfyUI would not use.
    """
    checkpoint = unet_state(unet)
    checkpoint |= {VAE + key: tensor for key, tensor in autoencoder_state(vae, scaling_factor).items()}
    # transformers >= 5.6 leaves out text_model., the original layout wants it
    text_encoder = {key.removeprefix("text_model."): tensor for key, tensor in text_encoder.items()}
    tokens = text_encoder.get("embeddings.token_embedding.weight")
    if tokens is not None and tokens.shape[1] == open_clip.WIDTH:
        return checkpoint | {OPEN_CLIP + key: tensor for key, tensor in open_clip.open_clip_state(text_encoder).items()}
    return checkpoint | {TEXT + key: tensor for key, tensor in text_encoder.items()}


def unet_state(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet below `model.diffusion_model.`, as ComfyUI's UNETLoader and diffusers' from_single_file both read it."""
    names = unet_names(unet)
    return {UNET + names[key]: tensor for key, tensor in unet.items()}


def unet_names(keys: Iterable[str]) -> dict[str, str]:
    """{diffusers' UNet2DConditionModel key: original key}, one for one; raises UserError for a key it does not know."""
    keys = list(keys)
    blocks = _modules(keys, r"((?:down|up)_blocks\.\d+)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+")
    modules = dict(UNET_ENDS)
    place = 1  # input_blocks.0 is conv_in
    for block in sorted((name for name in blocks if name.startswith("down")), key=_number):
        for index in range(_count(blocks[block], "resnets")):
            modules[f"{block}.resnets.{index}"] = f"input_blocks.{place}.0"
            modules[f"{block}.attentions.{index}"] = f"input_blocks.{place}.1"
            place += 1
        if f"{block}.downsamplers.0" in blocks[block]:
            modules[f"{block}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    place = 0
    for block in sorted((name for name in blocks if name.startswith("up")), key=_number):
        for index in range(_count(blocks[block], "resnets")):
            modules[f"{block}.resnets.{index}"] = f"output_blocks.{place}.0"
            modules[f"{block}.attentions.{index}"] = f"output_blocks.{place}.1"
            place += 1
        upsampler = 2 if _count(blocks[block], "attentions") else 1  # after the last resnet and its attention
        modules[f"{block}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{upsampler}.conv"
    return {key: _renamed(key, modules, RESNET) for key in keys}


def autoencoder_state(
    state: dict[str, Tensor],
    scaling_factor: float,
    shift_factor: float = 0.0,
    latents: tuple[float, float] = LATENTS,
) -> dict[str, Tensor]:
    """The autoencoder as ComfyUI reads it below `first_stage_model.`, decoding as diffusers would.

    latents: by what ComfyUI divides the latents of this family, and what it adds then. Raises UserError.
    """
    if "decoder.layers.0.weight" in state:
        return _tiny_autoencoder(state, scaling_factor, shift_factor, latents)
    for name, factor, only in (("scaling", scaling_factor, latents[0]), ("shift", shift_factor, latents[1])):
        if abs(factor - only) > 1e-6:
            raise UserError(f"The autoencoder's {name}_factor is {factor}; an SD checkpoint can only hold {only}.")
    names = _autoencoder_names(state)
    converted = {}
    for key, tensor in state.items():
        attention = ".attentions." in key and key.endswith(".weight") and tensor.ndim == 2
        converted[names[key]] = tensor[:, :, None, None] if attention else tensor  # the original has 1x1 convolutions
    return converted


def _tiny_autoencoder(
    state: dict[str, Tensor], scaling_factor: float, shift_factor: float, latents: tuple[float, float]
) -> dict[str, Tensor]:
    """TAESD's names. ComfyUI's decoder counts its clamp as layer 0; diffusers clamps outside its list."""
    scale = latents[0] / scaling_factor  # ComfyUI: decoder((x / latents[0] + latents[1] - vae_shift) * vae_scale)
    shift = latents[1] - shift_factor / scale
    converted = {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
    for key, tensor in state.items():
        part, _, index, rest = key.split(".", 3)
        converted[f"taesd_{part}.{int(index) + (part == 'decoder')}.{rest}"] = tensor
    return converted


def _autoencoder_names(keys: Iterable[str]) -> dict[str, str]:
    keys = list(keys)
    blocks = _modules(keys, r"((?:encoder|decoder)\.(?:down|up)_blocks\.\d+)\.(?:resnets|downsamplers|upsamplers)\.\d+")
    ups = sum(name.startswith("decoder") for name in blocks)
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for part in ("encoder", "decoder"):
        modules |= {
            f"{part}.conv_in": f"{part}.conv_in",
            f"{part}.conv_norm_out": f"{part}.norm_out",
            f"{part}.conv_out": f"{part}.conv_out",
            f"{part}.mid_block.resnets.0": f"{part}.mid.block_1",
            f"{part}.mid_block.attentions.0": f"{part}.mid.attn_1",
            f"{part}.mid_block.resnets.1": f"{part}.mid.block_2",
        }
    for block, inner in blocks.items():
        down = block.startswith("encoder")
        target = f"encoder.down.{_number(block)}" if down else f"decoder.up.{ups - 1 - _number(block)}"
        for index in range(_count(inner, "resnets")):
            modules[f"{block}.resnets.{index}"] = f"{target}.block.{index}"
        modules[f"{block}.downsamplers.0.conv"] = f"{target}.downsample.conv"
        modules[f"{block}.upsamplers.0.conv"] = f"{target}.upsample.conv"
    return {key: _renamed(key, modules, {"conv_shortcut": "nin_shortcut"}, VAE_ATTENTION) for key in keys}


def _modules(keys: list[str], pattern: str) -> dict[str, set[str]]:
    """{block: names of its modules}, from keys that match; group 1 of the pattern is the block."""
    blocks: dict[str, set[str]] = {}
    for key in keys:
        if match := re.match(pattern, key):
            blocks.setdefault(match[1], set()).add(match[0])
    return blocks


def _count(modules: set[str], kind: str) -> int:
    return sum(f".{kind}." in name for name in modules)


def _number(block: str) -> int:
    return int(block.rsplit(".", 1)[1])


def _renamed(key: str, modules: dict[str, str], resnet: dict[str, str], attention: dict[str, str] | None = None) -> str:
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            inner, kind = ".".join(parts[length:]), parts[length - 2] if length > 1 else ""
            table = resnet if kind == "resnets" else (attention or {}) if kind == "attentions" else {}
            old = next((name for name in table if inner.startswith(name + ".")), "")
            inner = table.get(old, old) + inner.removeprefix(old)
            return f"{modules[module]}.{inner}"
    raise UserError(
        f"No place in the Stable Diffusion checkpoint layout for `{quoted(key)}`; only SD 1, 2 and XL can be exported."
    )
