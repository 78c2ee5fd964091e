"""How the authors of every model sample from it, written out from their code: plain torch, or diffusers' scheduler.

Each function gets
    network(x, t): the model itself, x [batch, channels, height, width] and t a number, as the authors call it;
    z: the first noise, [batch, channels, height, width];
    fresh(): the next noise;
and returns the finished latent in the network's own scale.
"""

import math

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, TCDScheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
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


def lcm(count=None, timesteps=None):
    """LCMScheduler, boundary scaling and all; its fresh noise between steps."""

    def formula(network, z, fresh):
        scheduler, x = LCMScheduler(**SD), z
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
    """FlowMatchEulerDiscreteScheduler; `unit` is what the network calls timestep 1000."""

    def formula(network, z, fresh):
        scheduler, x = FlowMatchEulerDiscreteScheduler(**config), z
        scheduler.set_timesteps(count, sigmas=sigmas, mu=mu)
        for timestep in scheduler.timesteps:
            x = scheduler.step(network(x, float(timestep) / 1000 * unit), timestep, x).prev_sample
        return x

    return formula


def even(count):
    return np.linspace(1.0, 1 / count, count)


AUTHORS = {
    "sd": eps(999),
    "snoopi-shapes": eps(625, vp=True),
    "pg-sb-sd15": eps(999, hard_coded=0.0047),
    "pg-sb-sd21": eps(999, hard_coded=0.0047),
    "pg-sb-pixart": eps(999, ACP_PIXART),
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
    "flux2-klein": flow(even(4), mu=2.291179894115571, use_dynamic_shifting=True),
    "sd35-turbo": flow(count=4, unit=1000, shift=3.0),
    "z-image-turbo": flow(even(8), shift=3.0),
    "qwen-image-lightning-4step": flow(even(4), mu=math.log(3), use_dynamic_shifting=True),
    "qwen-image-lightning-8step": flow(even(8), mu=math.log(3), use_dynamic_shifting=True),
}
