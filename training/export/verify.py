"""Reads an exported file back and compares what it makes with what was exported."""

from pathlib import Path

import safetensors
import torch
from torch import nn

from ..backbones.stable_diffusion import StableDiffusion
from ..config import Start
from ..errors import UserError
from .stable_diffusion import UNET, unet_names


def load_unet(path: str | Path, network: nn.Module) -> dict[str, str]:
    """Loads a UNet that `export` wrote, checkpoint or UNet alone, strictly into a diffusers UNet; returns the metadata.

    Raises UserError if the file is damaged, or a tensor is missing, left over or of another shape.
    """
    names = unet_names(network.state_dict())
    try:
        with safetensors.safe_open(path, "pt") as file:
            keys = list(file.keys())
            prefix = UNET if any(key.startswith(UNET) for key in keys) else ""
            wanted = {prefix + name for name in names.values()}
            present = {key for key in keys if key.startswith(prefix)}
            if odd := sorted(wanted ^ present):
                raise UserError(
                    f"{path} is no UNet of this size: {len(odd)} tensors are missing or extra, such as {odd[0]}."
                )
            state = {key: file.get_tensor(prefix + name).float() for key, name in names.items()}
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {path}: {error}; the file is missing or damaged.") from None
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit the UNet it is loaded into: {str(error).splitlines()[-1].strip()}."
        ) from None
    return metadata


@torch.no_grad()
def relative_difference(path: Path, backbone: StableDiffusion, exported: nn.Module, start: Start) -> float:
    """|x0 of the file - x0 of the student| / |x0 of the student|, for one one-step latent. Overwrites backbone.unet."""
    load_unet(path, backbone.unet)
    z = torch.randn((1, *backbone.latent_shape()), generator=torch.Generator().manual_seed(0)).to(backbone.device)
    text = backbone.encode(["a photo"])
    before, after = (backbone.one_step(net, z, text, start.timestep, start.noise) for net in (exported, backbone.unet))
    return ((after - before).norm() / before.norm()).item()
