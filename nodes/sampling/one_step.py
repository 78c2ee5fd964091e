"""One step of sampling, from noise to picture, by ComfyUI's own sampler.

For an eps model with alpha_t = sqrt(acp[t]), sigma_vp = sqrt(1 - acp[t]) and noise z ~ N(0, 1):

    x_in = z (unit) or sigma_vp * z (vp)        x0 = (x_in - sigma_vp * eps(x_in, t)) / alpha_t

ComfyUI's sigma is sigma_vp / alpha_t. One Euler step from sigma to 0 is this formula already, all but the noise: stock
sampling hands the network unit noise where sigma is the largest of the schedule, and vp noise elsewhere.
"""

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher

from .presets import Preset


class OneStepSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """The model's own schedule, eps prediction, and first-step noise that is unit or vp at whatever timestep."""

    def __init__(self, model_config, noise: str):
        super().__init__(model_config)
        self.unit = noise == "unit"

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=None):
        # Only the sampler's start passes max_denoise. Inpainting does not, and noises what it keeps as it always does.
        unit = self.unit and max_denoise is not None
        return super().noise_scaling(sigma, noise, latent_image, max_denoise=unit)


def one_step_model(model: ModelPatcher, preset: Preset) -> tuple[ModelPatcher, torch.Tensor]:
    """A clone of `model` that samples as `preset` says, and its sigmas [sigma_t, 0] in fp32; `model` stays as it is.

    The schedule is the one the model was trained on: another ModelSampling patch on it is put aside.

    Raises:
        ValueError: the model has no such schedule.
    """
    base = model.model
    if base.model_type not in (ModelType.EPS, ModelType.V_PREDICTION):
        raise ValueError(
            f"The model ({type(base).__name__}, {base.model_type.name} sampling) does not fit the preset, which needs "
            f"noise prediction on a schedule of 1000 timesteps: load a one-step SD 1.5, SD 2.1 or SDXL model."
        )
    sampling = OneStepSampling(base.model_config, preset.noise)
    sigma = sampling.sigmas[preset.timestep]  # not sampling.sigma(t), which rounds through the logarithm
    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    return model, torch.stack([sigma, torch.zeros_like(sigma)])


def sample(model: ModelPatcher, sigmas: torch.Tensor, positive: list, latent: dict, seed: int, callback=None) -> dict:
    """Sample `latent` without CFG, with the noise a KSampler draws for the same seed.

    Args:
        model, sigmas: of `one_step_model`.
        positive: ComfyUI's CONDITIONING.
        latent: a LATENT: samples [batch, channels, height, width], and maybe noise_mask and batch_index.
        callback: called with (step, x0, x, total_steps) when the step is done.

    Returns:
        The LATENT with new samples in fp32.
    """
    downscale = {key: latent[key] for key in ("downscale_ratio_spacial", "downscale_ratio_temporal") if key in latent}
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **downscale)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    samples = guider.sample(
        noise,
        samples,
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    samples = samples.to(comfy.model_management.intermediate_device())
    return {key: value for key, value in latent.items() if key not in downscale} | {"samples": samples}
