"""How the authors of every model sample from it, written out from their code: plain torch, or diffusers' scheduler.

Each function gets
    network(x, t): the model itself, x [batch, channels, height, width] and t a number, as the authors call it;
    z: the first noise, [batch, channels, height, width];
    fresh(): the next noise;
and returns the finished latent in the network's own scale.
"""

import math
from unittest import mock

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, TCDScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PIXART = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
ACP_SD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
ACP_PIXART = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)


def eps(timestep, acp=ACP_SD, hard_coded=None, vp=False):
    """x0 = (x - sqrt(1 - acp[t]) * eps(x, t)) / sqrt(acp[t])"""
    acp_t = float(acp[timestep]) if hard_coded is None else hard_coded

    def formula(network, z, fresh):
        x = z * math.sqrt(1 - acp_t) if vp else z
        return (x - math.sqrt(1 - acp_t) * network(x, timestep)) / math.sqrt(acp_t)

    return formula


def yoso_pixart(network, z, fresh):
    """x0 = sqrt(acp[999]) * z - sqrt(1 - acp[999]) * v(z, 999)"""
    acp = float(ACP_PIXART[999])
    return math.sqrt(acp) * z - math.sqrt(1 - acp) * network(z, 999)


def yoso_informed(network, z, fresh):
    """add_noise(mean + std * randn, noise, 999); here mean 0 and std 1, the start that an empty latent stands for."""
    seeds = [int(torch.tensor([float(picture.flatten()[0])]).view(torch.int32).abs()) for picture in z]
    other = torch.stack([torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    scheduler = LCMScheduler(**SD)
    x = scheduler.add_noise(0 + 1 * other, z, torch.tensor([999]))
    acp = float(ACP_SD[999])
    return (x - math.sqrt(1 - acp) * network(x, 999)) / math.sqrt(acp)


def instaflow(network, z, fresh):
    """pipeline_rf.py with one step: dt = 1, latents + dt * v(latents, 1000)"""
    return z + network(z, 1000.0)


def lightning_x0(network, z, fresh):
    return network(z, 999)


def dmd2(timesteps):
    """demo/text_to_image_sdxl.py: x0 by the formula, then add_noise with fresh noise at the next timestep."""

    def formula(network, z, fresh):
        scheduler, x = DDIMScheduler(**SD), z
        for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            acp = float(ACP_SD[timestep])
            x0 = (x - math.sqrt(1 - acp) * network(x, timestep)) / math.sqrt(acp)
            if following is not None:
                x = scheduler.add_noise(x0, fresh(), torch.tensor([following]))
        return x0

    return formula


def lcm(count=None, timesteps=None, betas=SD):
    """LCMScheduler, boundary scaling and all; its fresh noise between steps."""

    def formula(network, z, fresh):
        scheduler, x = LCMScheduler(**betas), z
        if timesteps is None:
            scheduler.set_timesteps(count)
        else:
            scheduler.set_timesteps(timesteps=timesteps)
        listed = [int(t) for t in scheduler.timesteps]
        for timestep, following in zip(listed, [*listed[1:], None], strict=True):
            x0 = scheduler.step(network(x, timestep), timestep, x).denoised
            if following is not None:
                x = scheduler.add_noise(x0, fresh(), torch.tensor([following]))
        return x0

    return formula


def lightning(count):
    """Euler with trailing spacing, which for eps is DDIM: x' = alpha' * x0 + sigma' * eps, down to the picture."""

    def formula(network, z, fresh):
        listed, x = [int(t) - 1 for t in np.round(np.arange(1000, 0, -1000 / count))], z
        for timestep, following in zip(listed, [*listed[1:], None], strict=True):
            acp, acp_next = float(ACP_SD[timestep]), 1.0 if following is None else float(ACP_SD[following])
            predicted = network(x, timestep)
            x0 = (x - math.sqrt(1 - acp) * predicted) / math.sqrt(acp)
            x = math.sqrt(acp_next) * x0 + math.sqrt(1 - acp_next) * predicted
        return x

    return formula


def hyper_lora(network, z, fresh):
    """TCDScheduler with eta 1 and one step."""
    scheduler = TCDScheduler(**SD)
    scheduler.set_timesteps(1)
    timestep = int(scheduler.timesteps[0])
    return scheduler.step(network(z, timestep), timestep, z, eta=1.0).prev_sample


def tcd(count, eta=0.0):
    """TCDScheduler; eta 0 is how a pipeline calls it without an eta."""

    def formula(network, z, fresh):
        scheduler, x = TCDScheduler(**SD), z
        scheduler.set_timesteps(count)
        for timestep in scheduler.timesteps:
            noise = fresh() if eta and timestep != scheduler.timesteps[-1] else None
            with mock.patch("diffusers.schedulers.scheduling_tcd.randn_tensor", lambda *_, noise=noise, **__: noise):
                x = scheduler.step(network(x, int(timestep)), timestep, x, eta=eta).prev_sample
        return x

    return formula


def ancestral(timesteps):
    """EulerAncestralDiscreteScheduler: Euler to sigma_down, and new noise of sigma_up; it starts from unit noise."""

    def formula(network, z, fresh):
        sigmas = [math.sqrt((1 - float(ACP_SD[t])) / float(ACP_SD[t])) for t in timesteps]
        x = z * math.sqrt(1 + sigmas[0] ** 2)
        for t, sigma, following in zip(timesteps, sigmas, [*sigmas[1:], 0.0], strict=True):
            predicted = network(x / math.sqrt(1 + sigma**2), t)
            up = math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
            x = x + predicted * (math.sqrt(following**2 - up**2) - sigma)
            if following:
                x = x + fresh() * up
        return x

    return formula


def nitro(shift, count):
    """TimestepShiftLCMScheduler, 4 original steps: the network is told, and x0 taken at, int(t * shift / 1000)."""

    def formula(network, z, fresh):
        scheduler, x = DDIMScheduler(**SD), z
        levels = [999, 749, 499, 249][:: 4 // count]
        for level, following in zip(levels, [*levels[1:], None], strict=True):
            told = int(level * shift / 1000)
            acp, scaled = float(ACP_SD[told]), told * 10.0
            x0 = (x - math.sqrt(1 - acp) * network(x, told)) / math.sqrt(acp)
            c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
            x0 = c_out * x0 + c_skip * x
            if following is not None:
                x = scheduler.add_noise(x0, fresh(), torch.tensor([following]))
        return x0

    return formula


def flow(sigmas=None, count=None, unit=1.0, mu=None, **config):
    """FlowMatchEulerDiscreteScheduler; `unit` is what the network calls timestep 1000, `mu` maybe depends on z."""

    def formula(network, z, fresh):
        scheduler, x = FlowMatchEulerDiscreteScheduler(**config), z
        scheduler.set_timesteps(count, sigmas=sigmas, mu=mu(z) if callable(mu) else mu)
        for timestep in scheduler.timesteps:
            x = scheduler.step(network(x, float(timestep) / 1000 * unit), timestep, x).prev_sample
        return x

    return formula


def flow_fresh(sigmas, unit=1.0):
    """FlashFlowMatchEulerDiscreteScheduler and FlowMatchLCMScheduler: the picture, then new noise at the next sigma."""

    def formula(network, z, fresh):
        x = z
        for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            x0 = x - sigma * network(x, sigma * unit)
            x = (1 - following) * x0 + following * fresh() if following else x0
        return x

    return formula


def flow_from(timestep):
    """One step of a flow model from t = timestep / 1000, as the trainer's own backbone makes it."""

    def formula(network, z, fresh):
        t = timestep / 1000
        return t * z - t * network(t * z, timestep)

    return formula


def double_shifted(count, shift):
    """The sigmas of FlowMatchEulerDiscreteScheduler, which shifts its ends before it divides what lies between."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(count)
    return [float(sigma) for sigma in scheduler.sigmas[:-1]]


def sgm_uniform(count, shift, last=0.001):
    """ComfyUI's scheduler of that name on a flow model, which Boogu's template takes."""
    end = shift * last / (1 + (shift - 1) * last)
    even = [1 - step * (1 - end) / count for step in range(count)]
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def flux_mu(pixels):
    """calculate_shift of FluxPipeline."""
    return 0.5 + (pixels / 256 - 256) * (1.15 - 0.5) / (4096 - 256)


def flux2_mu(count):
    """Of a latent whose every place is a token."""
    return lambda z: compute_empirical_mu(z.shape[-1] * z.shape[-2], count)


def even(count):
    return np.linspace(1.0, 1 / count, count)


AUTHORS = {
    "sd": eps(999),
    "snoopi-shapes": eps(625, vp=True),
    "snoopi-portraits": flow_from(720),
    "pg-sb-sd15": eps(999, hard_coded=0.0047),
    "pg-sb-sd21": eps(999, hard_coded=0.0047),
    "pg-sb-pixart": eps(999, ACP_PIXART),
    "pg-sb-sd3": flow_from(885),
    "pixart": eps(999, ACP_PIXART),
    "swiftbrush": eps(999, hard_coded=0.0047),
    "swiftbrush-v2": eps(999),
    "instaflow": instaflow,
    "dmd-sd15": eps(999),
    "dmd2-sd15": eps(999, hard_coded=0.0047),
    "dmd2-sdxl-1step": dmd2([399]),
    "dmd2-sdxl-4step": dmd2([999, 749, 499, 249]),
    "pixart-alpha-dmd": eps(400, ACP_PIXART),
    "yoso-sd15": yoso_informed,
    "yoso-sd15-2step": lcm(2),
    "yoso-pixart": yoso_pixart,
    "lcm": lcm(4),
    "sd-turbo": eps(999),
    "sdxl-turbo": eps(999),
    "sdxl-lightning-1step": lightning_x0,
    "sdxl-lightning-2step": lightning(2),
    "sdxl-lightning-4step": lightning(4),
    "sdxl-lightning-8step": lightning(8),
    "hyper-sdxl-1step": lcm(timesteps=[800]),
    "hyper-sd-1step-lora": hyper_lora,
    "nitrosd-realism": nitro(250, 1),
    "nitrosd-realism-4step": nitro(250, 4),
    "nitrosd-vibrant": nitro(500, 1),
    "nitrosd-vibrant-4step": nitro(500, 4),
    "sid-lsg": eps(625, vp=True),
    "amd-nitro-sd21": eps(999),
    "amd-nitro-pixart": eps(400, ACP_PIXART),
    "flux-schnell": flow(even(4)),
    "flux-schnell-1step": flow(even(1)),
    "flux2-klein": flow(even(4), mu=flux2_mu(4), use_dynamic_shifting=True),
    "sd35-turbo": flow(count=4, unit=1000, shift=3.0),
    "z-image-turbo": flow(even(8), shift=3.0),
    "qwen-image-lightning-4step": flow(even(4), mu=math.log(3), use_dynamic_shifting=True),
    "qwen-image-lightning-8step": flow(even(8), mu=math.log(3), use_dynamic_shifting=True),
    "few-step": dmd2([999, 874, 749, 624, 499, 374, 249, 124]),
    "dmd2-sdxl-8step": dmd2([999, 874, 749, 624, 499, 374, 249, 124]),
    "hyper-sd-2step": lightning(2),
    "hyper-sd-4step": lightning(4),
    "hyper-sd-8step": lightning(8),
    "hyper-sd-8step-cfg": lightning(8),
    "tcd": tcd(4, eta=0.3),
    "pcm-2step": tcd(2),
    "pcm-4step": tcd(4),
    "pcm-8step": tcd(8),
    "pcm-16step": tcd(16),
    "pcm-4step-cfg": tcd(4),
    "pcm-8step-cfg": tcd(8),
    "pcm-16step-cfg": tcd(16),
    "flash-sd": lcm(4),
    "sdxl-flash": lightning(7),
    "sdxl-turbo-4step": ancestral([999, 749, 499, 249]),
    "pixart-lcm": lcm(4, betas=PIXART),
    "flux-dev-turbo": flow(even(8), mu=lambda z: flux_mu(z.shape[-1] * z.shape[-2] * 64), use_dynamic_shifting=True),
    "flux-dev-hyper": flow(even(8), mu=lambda z: flux_mu(z.shape[-1] * z.shape[-2] * 64), use_dynamic_shifting=True),
    "flux2-dev-turbo": flow(even(8), mu=flux2_mu(8), use_dynamic_shifting=True),
    "sd35-medium-turbo": flow(count=8, unit=1000, shift=5.0),
    "flash-sd3": flow_fresh(double_shifted(4, 3.0), unit=1000),
    "qwen-image-turbo-2step": flow(even(2), mu=math.log(3), use_dynamic_shifting=True),
    "qwen-image-turbo-4step": flow(even(4), mu=math.log(3), use_dynamic_shifting=True),
    "qwen-image-2-1-turbo": flow([1, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568]),
    "anima-turbo": flow(even(8), shift=3.0),
    "wan21-lightx2v": flow(even(6), unit=1000, shift=5.0),
    "wan21-causvid": flow(even(4), unit=1000, shift=8.0),
    "wan-animate2-distilled": flow_fresh([5 * t / (1 + 4 * t) for t in even(10)], unit=1000),
    "ltx2-distilled": flow([1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]),
    "krea2-turbo": flow(even(8), mu=1.15, use_dynamic_shifting=True),
    "krea2-turbo-lora": flow(even(8), mu=1.15, use_dynamic_shifting=True),
    "ernie-image-turbo": flow(even(8), unit=1000, shift=3.0),
    "boogu-turbo": flow_fresh(sgm_uniform(4, 3.16)),
    "mage-flow-turbo": flow(even(4), shift=6.0),
    "lens-turbo": flow(even(4), mu=lambda z: flux_mu(z.shape[-1] * z.shape[-2] * 256), use_dynamic_shifting=True),
    "hidream-fast": flow_fresh(double_shifted(16, 3.0), unit=1000),
    "hidream-dev": flow_fresh(double_shifted(28, 6.0), unit=1000),
}
#: Rows of a part of the steps, from a noisy latent or a picture, or of sound beside the picture, and the tests of each.
OTHERWISE = {
    "wan22-lightx2v-high-noise": "test_stages.py",
    "wan22-lightx2v-low-noise": "test_stages.py",
    "ltx2-distilled-second-pass": "test_stages.py",
    "ltx23-distilled-second-pass": "test_stages.py",
    "minimax-h3-turbo": "test_stages.py",
    "minimax-h3-turbo-4step": "test_stages.py",
}
