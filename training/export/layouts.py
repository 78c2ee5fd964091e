"""The tensors of each layout, under the names that its readers want."""

import torch
from torch import Tensor

from ..errors import UserError
from ..networks.backbones import LatentDiffusion
from .families import PIXART, SD2, SD3, SDXL, Family, Layout, family_of
from .lora import kohya_lora, peft_lora
from .pixart import pixart_state
from .stable_diffusion import UNET, stable_diffusion_checkpoint, unet_state
from .stable_diffusion3 import stable_diffusion3_checkpoint, transformer_state
from .stable_diffusion_xl import stable_diffusion_xl_checkpoint

V_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"  # by which ComfyUI tells eps from v in SD 2.x
V_SPREAD = 0.09


def network_tensors(state: dict[str, Tensor], backbone: LatentDiffusion) -> dict[str, Tensor]:
    """A denoiser alone, as ComfyUI's Load Diffusion Model and diffusers read it."""
    convert = {PIXART: pixart_state, SD3: transformer_state}.get(family_of(state), unet_state)
    return convert(state) | {UNET + mark: torch.zeros(0) for mark in marks(state, backbone)}


def marks(state: dict[str, Tensor], backbone: LatentDiffusion) -> list[str]:
    """The empty tensors by which an SDXL says that it predicts v, and that its schedule ends in pure noise."""
    if family_of(state) is not SDXL or backbone.prediction_type != "v_prediction":
        return []
    return ["v_pred"] + ["ztsnr"] * bool(backbone.sampler.config.get("rescale_betas_zero_snr"))


def checkpoint_tensors(state: dict[str, Tensor], backbone: LatentDiffusion) -> dict[str, Tensor]:
    """Denoiser, autoencoder and text encoder as ComfyUI's Load Checkpoint reads them (Stable Diffusion)."""
    if family_of(state) is SD3:
        encoders = {folder: encoder.state_dict() for folder, encoder in backbone.text_encoder.items()}
        factors = backbone.vae.config.scaling_factor, backbone.vae.config.shift_factor or 0.0
        return stable_diffusion3_checkpoint(state, backbone.vae.state_dict(), encoders, *factors)
    if family_of(state) is SDXL:
        encoders = (encoder.state_dict() for encoder in backbone.text_encoder.values())
        parts = (backbone.vae.state_dict(), *encoders, backbone.vae.config.scaling_factor)
        said = {mark: torch.zeros(0) for mark in marks(state, backbone)}
        return stable_diffusion_xl_checkpoint(state, *parts) | said
    vae, text_encoder = backbone.vae.state_dict(), backbone.text_encoder.state_dict()
    return stable_diffusion_checkpoint(state, vae, text_encoder, backbone.vae.config.scaling_factor)


def lora_tensors(state: dict[str, Tensor], family: Family, scale: float) -> dict[str, Tensor]:
    """A LoRA as ComfyUI's Load LoRA reads it, and diffusers (Stable Diffusion) or peft (PixArt)."""
    if family is SD3:
        return peft_lora(state, scale, "transformer.")
    return peft_lora(state, scale) if family is PIXART else kohya_lora(state, scale)


def chosen_layout(layout: Layout | None, family: Family, lora: bool) -> Layout:
    """The layout to write; by default a student's LoRA as one, else the family's first. Raises UserError."""
    allowed = [name for name in family.layouts if lora or name != "lora"]
    layout = layout or ("lora" if lora else allowed[0])
    if layout == "lora" and not lora:
        raise UserError("--format is lora, but this student is whole weights; train one with `student.lora`, or choose "
                        f"{' or '.join(allowed)}.")  # fmt: skip
    if layout not in allowed:
        raise UserError(f"--format is {layout}; for {family.name} allowed is {' or '.join(allowed)}.")
    return layout


def comfyui_prediction(tensors: dict[str, Tensor], family: Family) -> tuple[str, str]:
    """What ComfyUI's stock loaders will take the file for, epsilon, v_prediction or flow-; and by what."""
    if family is SD3:
        return "flow-", f"it takes every {family.name} for that"
    if family is SDXL:
        said = tensors.keys() & {"v_pred", UNET + "v_pred"}
        return ("v_prediction", "it has `v_pred`") if said else ("epsilon", "it has no `v_pred`")
    if family is not SD2:
        return "epsilon", f"it takes every {family.name} for that"
    bias = tensors.get(UNET + V_BIAS)
    if bias is None:
        return "epsilon", f"the file has no {V_BIAS}"
    spread = bias.float().std(unbiased=False).item()
    kind = "v_prediction" if spread > V_SPREAD else "epsilon"
    return kind, f"the spread of {V_BIAS} is {spread:.3f}, and above {V_SPREAD} means v"
