"""What is known of a backbone's family: its names in metadata, and its layouts of an exported file. Data."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Layout = Literal["checkpoint", "unet", "transformer", "lora"]

LAYOUTS: dict[Layout, str] = {
    "checkpoint": "network, autoencoder and text encoder, for ComfyUI's Load Checkpoint",
    "unet": "the UNet alone, for ComfyUI's Load Diffusion Model",
    "transformer": "the transformer alone, for ComfyUI's Load Diffusion Model",
    "lora": "the LoRA alone, for ComfyUI's Load LoRA on this base and checkpoints made from it",
}


@dataclass(frozen=True)
class Family:
    """One row. layouts: the default first; alpha: the paper's default strength of NASA (v3, NASA-I)."""

    name: str
    architecture: str  # ModelSpec 1.0.1's, where it has one
    preset: str  # row of the nodes' table for this family; start and prediction are told beside it
    alpha: float
    layouts: tuple[Layout, ...]


SD1 = Family("Stable Diffusion 1.x", "stable-diffusion-v1", "sd", 0.1, ("checkpoint", "unet", "lora"))
SD2 = Family("Stable Diffusion 2.x", "stable-diffusion-v2-512", "sd", 0.2, ("checkpoint", "unet", "lora"))
SDXL = Family("Stable Diffusion XL", "stable-diffusion-xl-v1-base", "sd", 0.1, ("checkpoint", "unet", "lora"))
SD3 = Family("Stable Diffusion 3.x", "stable-diffusion-3", "pg-sb-sd3", 0.5, ("checkpoint", "transformer", "lora"))
PIXART = Family("PixArt-alpha", "pixart-alpha", "pg-sb-pixart", 0.5, ("transformer", "lora"))


def family_of(state: dict[str, Tensor]) -> Family:
    """The family of a denoiser's state dict (diffusers' names), by the text it attends to."""
    if any(key.startswith("caption_projection.") for key in state):
        return PIXART
    if "context_embedder.weight" in state:
        return SD3
    if "add_embedding.linear_1.weight" in state:
        return SDXL
    widths = {tensor.shape[1] for key, tensor in state.items() if key.endswith("attn2.to_k.weight")}
    return SD2 if widths == {1024} else SD1
