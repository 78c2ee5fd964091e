"""SDXL from diffusers' names to the original layout that ComfyUI's CheckpointLoaderSimple reads."""

from torch import Tensor

from .open_clip import open_clip_state
from .stable_diffusion import VAE, autoencoder_state, unet_state

LATENTS = (0.13025, 0.0)  # by what ComfyUI divides every SDXL latent, and what it adds then
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
PROJECTION = "text_projection.weight"


def stable_diffusion_xl_checkpoint(
    unet: dict[str, Tensor], vae: dict[str, Tensor], clip_l: dict[str, Tensor], clip_g: dict[str, Tensor], factor: float
) -> dict[str, Tensor]:
    """One SDXL single-file checkpoint from the state dicts of diffusers and transformers.

    factor: the autoencoder's scaling_factor. Raises UserError for a tensor without a place, or an AutoencoderKL of
    another factor than SDXL's.
    """
    checkpoint = unet_state(unet)
    autoencoder = autoencoder_state(vae, factor, latents=LATENTS)
    checkpoint |= {VAE + key: tensor for key, tensor in autoencoder.items()}
    checkpoint |= {CLIP_L + key.removeprefix("text_model."): tensor for key, tensor in clip_l.items()}
    checkpoint[CLIP_G + "text_projection"] = clip_g[PROJECTION].T
    layers = {key: tensor for key, tensor in clip_g.items() if key != PROJECTION}
    return checkpoint | {CLIP_G + key: tensor for key, tensor in open_clip_state(layers, depth=0).items()}
