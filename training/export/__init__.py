"""From a run to a file that ComfyUI and diffusers load."""

import copy
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch

from ..atomic import atomic_file
from ..backbones.stable_diffusion import StableDiffusion
from ..errors import UserError
from ..runs import open_run
from .metadata import metadata
from .stable_diffusion import LATENT_SCALE, stable_diffusion_checkpoint, unet_names
from .verify import relative_difference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2}  # fp16 keeps 11 bits of each weight


def export(
    source: str | Path,
    output: str | Path,
    layout: Literal["checkpoint", "unet"] = "checkpoint",
    half: bool = False,
    average: bool = True,
    title: str | None = None,
) -> float:
    """Writes the student of a run, or of one of its checkpoints, as safetensors; returns the relative difference.

    layout checkpoint: UNet, autoencoder and text encoder in one file; unet: the UNet alone, original names without a
    prefix (ComfyUI's UNETLoader and diffusers' from_single_file read it). average: EMA weights where the run has them.
    The file is read back and compared with the student in one step before it takes its name, so a wrong file never
    replaces a good one. Raises UserError.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output is {output}; the file's name must end in .safetensors.")
    run = open_run(source)
    dtype = torch.float16 if half else torch.float32
    backbone = StableDiffusion(run.config.teacher)
    student = copy.deepcopy(backbone.unet)
    student.load_state_dict(run.weights(average))
    if layout == "checkpoint":
        vae, text_encoder = backbone.vae.state_dict(), backbone.text_encoder.state_dict()
        state = stable_diffusion_checkpoint(student.state_dict(), vae, text_encoder, backbone.vae.config.scaling_factor)
    else:
        names = unet_names(student.state_dict())
        state = {names[key]: tensor for key, tensor in student.state_dict().items()}
    for key, tensor in state.items():
        if tensor.ndim and tensor.is_floating_point():  # the tiny autoencoder's two scalars stay fp32
            tensor = tensor.to(dtype)
        state[key] = tensor.contiguous()
    height, width = (8 * side for side in backbone.latent_shape(run.config.latent_size)[1:])
    described = metadata(run.config, title or run.folder.name, f"{width}x{height}")
    with atomic_file(output) as temporary:
        safetensors.torch.save_file(state, temporary, described)
        difference = relative_difference(temporary, backbone, student, run.config.start)
        if not difference <= TOLERANCE[dtype]:
            raise UserError(
                f"The written file differs from the student by {difference:.1e} in one step; nothing was kept."
            )
    return difference


__all__ = ["LATENT_SCALE", "export", "stable_diffusion_checkpoint", "unet_names"]
