"""The schedule and the formulas of a preset, as the model-sampling object that ComfyUI's samplers and guiders ask.

With alpha_t = sqrt(acp[t]), sigma_vp = sqrt(1 - acp[t]), noise z ~ N(0, 1) and the network F:

    x_in = z (unit), sigma_vp * z (vp) or alpha_t * (mean + std * n) + sigma_vp * z (ipi)

    eps     x0 = (x_in - sigma_vp * F) / alpha_t             flow-   x0 = x_in - t / 1000 * F
    v       x0 = alpha_t * x_in - sigma_vp * F               flow+   x0 = x_in + t / 1000 * F
    x0      x0 = F

ComfyUI works with sigma = sigma_vp / alpha_t and x = x_in / alpha_t (flow: sigma = t / 1000, x = x_in). It hands the
network unit noise if sampling starts at `sigma_max`, and vp noise elsewhere. So a schedule that ends where the preset
starts makes the first step unit and all later ones vp, which is what unit models want; the formulas are ComfyUI's.

A preset for a LoRA or a family of models has the formula and the schedule of the model that it runs on instead, which
may be another: one that ends in pure noise (zero terminal SNR), or EDM, which tells the network log(sigma) / 4.

Between the listed timesteps the tables are filled in evenly, so that the scheduler `simple` gives exactly the list for
as many steps as it has, and a sensible one for any other number.
"""

import functools
import math

import comfy.model_sampling
import torch
from comfy.model_sampling import CONST, EPS, V_PREDICTION, X0, ModelSamplingDiscrete, reshape_sigma
from comfy.model_sampling import ModelSamplingDiscreteEDM as DiscreteEDM

from .preset import Preset

#: What ComfyUI's models read of their flow sampling beside its formulas: MiniMax H3 for its sound, HiDream-O1.
OF_THE_FAMILY = ("shift", "audio_shift", "audio_scale", "noise_scale")


class PresetSampling(torch.nn.Module):
    """What diffusion and flow models share: tables that ComfyUI's schedulers read.

    Buffers, all ascending and of one length, and none of them part of the model's weights:
        sigmas: the noise levels in fp32.
        timesteps: what the network is told at each, in fp32.
    """

    sigma_data = 1.0

    def __init__(self, preset: Preset, base: torch.nn.Module, sigmas: torch.Tensor, timesteps: torch.Tensor):
        super().__init__()
        self.preset = preset
        self._base = (base,)  # in a tuple it is no part of this module
        self.register_buffer("sigmas", sigmas.float(), persistent=False)
        self.register_buffer("timesteps", timesteps.float(), persistent=False)

    @property
    def base(self) -> torch.nn.Module:
        """The model-sampling object that the model has without the preset."""
        return self._base[0]

    @property
    def sampler(self) -> str:
        """The name of ComfyUI's sampler that takes the preset's steps.

        Euler loses the digits of the picture where the noise is a hundred times as strong; that for fresh noise hands
        out the last picture itself.
        """
        one_from_pure_noise = len(self.preset.timesteps) == 1 and float(self.sigma_max) > 1000
        return "lcm" if one_from_pure_noise else self.preset.sampler

    @property
    def sigma_min(self) -> torch.Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.sigmas[-1]

    def listed_sigmas(self) -> torch.Tensor:
        """The sigma of every listed step, from high to low, without the final 0."""
        parts = len(self.sigmas) // len(self.preset.timesteps)
        return self.sigmas.flip(0)[::parts]

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a fraction of the sampling: 0 before its start, 1 at its end."""
        if percent <= 0:
            return 999999999.9
        if percent >= 1:
            return 0.0
        return float(self.sigmas[round((1 - percent) * (len(self.sigmas) - 1))])

    def calculate_denoised(self, sigma, model_output, model_input):
        return super().calculate_denoised(sigma, model_output[:, : self.preset.channels], model_input)


class DiffusionSampling(PresetSampling):
    """On a schedule of 1000 timesteps: that of the model's family, or that of `base` if the preset follows it."""

    def __init__(self, preset: Preset, base: torch.nn.Module, model_config):
        schedule = base if preset.follows_base else comfy.model_sampling.ModelSamplingDiscrete(model_config)
        parts = math.ceil((preset.noise_levels[0] + 1) / len(preset.timesteps))
        levels = _filled_in(preset.noise_levels, -1, parts).round().clamp(min=0).long()
        sigmas = _sigmas_at(schedule, levels)
        if preset.alphas_cumprod is not None:
            sigmas[-1] = math.sqrt((1 - preset.alphas_cumprod) / preset.alphas_cumprod)
        listed = _filled_in(preset.timesteps, -1, parts).round().clamp(min=0).long()
        counts_timesteps = isinstance(schedule, ModelSamplingDiscrete) and not isinstance(schedule, DiscreteEDM)
        super().__init__(preset, base, sigmas, listed if counts_timesteps else schedule.timestep(sigmas))
        self.sigma_data = schedule.sigma_data if hasattr(schedule, "sigma_data") else 1.0
        self.zsnr = getattr(schedule, "zsnr", False)
        self.register_buffer("log_sigmas", self.sigmas.log(), persistent=False)
        # The sigma that belongs to what the network is told, where that is not how noisy the picture is.
        told = _sigmas_at(schedule, listed) if preset.levels else None
        self.register_buffer("told_sigmas", told, persistent=False)
        # Where a step stops before new noise takes it up to a sigma: (1 - gamma) times the timestep.
        below = _sigmas_at(schedule, ((1 - preset.gamma) * levels).floor().long()) if preset.gamma else None
        self.register_buffer("sigmas_below", below, persistent=False)
        self.first_sigma = float(schedule.sigmas[0])
        self.last_sigma = 1.0001 * float(self.listed_sigmas()[-1])

    def _index(self, sigma: torch.Tensor) -> torch.Tensor:
        distances = sigma.log() - self.log_sigmas.to(sigma.device)[:, None]
        return distances.abs().argmin(dim=0).view(sigma.shape)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.timesteps.to(sigma.device)[self._index(sigma)]

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        timesteps = self.timesteps.to(timestep.device)
        t = timestep.float().clamp(timesteps[0], timesteps[-1])
        above = torch.searchsorted(timesteps, t).clamp(1, max(len(timesteps) - 1, 1))
        if len(timesteps) == 1:
            return self.sigmas.to(timestep.device).expand_as(t)
        below = above - 1
        share = (t - timesteps[below]) / (timesteps[above] - timesteps[below]).clamp(min=1e-6)
        log_sigmas = self.log_sigmas.to(timestep.device)
        return torch.lerp(log_sigmas[below], log_sigmas[above], share.clamp(max=1)).exp()

    def below(self, sigma: torch.Tensor) -> torch.Tensor:
        """The sigma that new noise starts from, for a preset with gamma."""
        return self.sigmas_below.to(sigma.device)[self._index(sigma)]

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=None):
        # Only the sampler's start passes max_denoise. Inpainting does not, and noises what it keeps as it always does.
        if max_denoise is not None and self.preset.noise != "unit":
            if max_denoise and self.preset.noise == "ipi":
                latent_image = informed_start(noise, latent_image)
            max_denoise = False
        return super().noise_scaling(sigma, noise, latent_image, max_denoise=bool(max_denoise))

    def calculate_denoised(self, sigma, model_output, model_input):
        if self.told_sigmas is not None:
            told = self.told_sigmas.to(sigma.device)[self._index(sigma)]
            same_input = ((1 + told**2) / (1 + sigma**2)).sqrt()
            x0 = super().calculate_denoised(
                told, model_output, model_input * reshape_sigma(same_input, model_input.ndim)
            )
        else:
            x0 = super().calculate_denoised(sigma, model_output, model_input)
        if self.preset.output != "tcd":
            return x0
        noise = (model_input - x0) / reshape_sigma(sigma, model_input.ndim)
        finished = (x0 + self.first_sigma * noise) / math.sqrt(1 + self.first_sigma**2)
        return torch.where(reshape_sigma(sigma, model_input.ndim) > self.last_sigma, x0, finished)


class FlowSampling(PresetSampling):
    """On the straight line between picture and noise; the network is told sigma * multiplier."""

    def __init__(self, preset: Preset, base: torch.nn.Module, multiplier: float):
        sigmas = _filled_in(preset.timesteps, 0, math.ceil(preset.timesteps[0] / len(preset.timesteps))) / 1000
        super().__init__(preset, base, sigmas, sigmas * multiplier)
        self.multiplier = multiplier
        for name in OF_THE_FAMILY:
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma * self.multiplier

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        return timestep / self.multiplier


class EpsSampling(DiffusionSampling, EPS):
    """The network predicts the noise."""


class VSampling(DiffusionSampling, V_PREDICTION):
    """The network predicts alpha * noise - sigma_vp * picture."""


class X0Sampling(DiffusionSampling, X0):
    """The network predicts the picture."""


class FlowMinusSampling(FlowSampling, CONST):
    """The network predicts noise - picture."""


class FlowPlusSampling(FlowSampling, CONST):
    """The network predicts picture - noise."""

    def calculate_denoised(self, sigma, model_output, model_input):
        return super().calculate_denoised(sigma, -model_output, model_input)


PREDICTIONS = {
    "eps": EpsSampling,
    "v": VSampling,
    "x0": X0Sampling,
    "flow-": FlowMinusSampling,
    "flow+": FlowPlusSampling,
}


def formula_of(sampling: torch.nn.Module) -> type:
    """The class of comfy.model_sampling, or of a node, by which a model-sampling object computes the picture."""
    own = (PresetSampling, DiffusionSampling, FlowSampling)
    return next(kind for kind in type(sampling).__mro__ if "calculate_denoised" in vars(kind) and kind not in own)


@functools.cache
def with_formula(formula: type) -> type[DiffusionSampling]:
    """DiffusionSampling for a network that predicts what `formula` says."""
    return type(f"{formula.__name__}Sampling", (DiffusionSampling, formula), {})


def informed_start(noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """YOSO's informative initial latent: mean + std * n over a batch of latents; n is drawn anew for each picture.

    An empty latent counts as mean 0 and std 1, one picture as std 0. n depends on nothing but the picture's own noise.

    Args:
        noise, latents: [batch, channels, height, width].
    """
    mean, std = torch.zeros_like(noise), torch.ones_like(noise)
    if torch.count_nonzero(latents):
        mean = latents.mean(dim=0, keepdim=True)
        std = latents.std(dim=0, keepdim=True) if latents.shape[0] > 1 else torch.zeros_like(mean)
    seeds = noise.flatten(1)[:, 0].float().contiguous().view(torch.int32).tolist()
    drawn = [torch.randn(noise.shape[1:], generator=torch.Generator().manual_seed(abs(seed))) for seed in seeds]
    return mean + std * torch.stack(drawn).to(noise)


def _sigmas_at(schedule: torch.nn.Module, timesteps: torch.Tensor) -> torch.Tensor:
    """The sigmas of a model-sampling object at whole timesteps of 1000; its table may be of another length."""
    count = len(schedule.sigmas)
    if count == 1000:
        return schedule.sigmas.cpu()[timesteps]
    if count < 1000 and isinstance(schedule, ModelSamplingDiscrete):  # it interpolates between some of the 1000
        return schedule.sigma(timesteps.float()).cpu()
    return schedule.sigmas.cpu()[((timesteps + 1) * count / 1000).round().long().clamp(min=1) - 1]


def _filled_in(listed: tuple[float, ...], end: float, parts: int) -> torch.Tensor:
    """The listed numbers, ascending in fp64, each `parts` places from the next, and the first `parts` from `end`."""
    stretches = zip(listed, (*listed[1:], end), strict=True)
    table = [torch.linspace(high, low, parts + 1, dtype=torch.float64)[:-1] for high, low in stretches]
    return torch.cat(table).flip(0)
