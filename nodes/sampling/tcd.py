"""The steps of Trajectory Consistency Distillation, part of whose noise is new each time (arXiv 2402.19159, gamma)."""

import torch
from comfy.k_diffusion.sampling import default_noise_sampler


@torch.no_grad()
def sample_tcd(model, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, callback=None, disable=None):
    """A sampler for comfy.samplers.KSAMPLER: TCDScheduler of diffusers, whose eta is the preset's gamma.

    Each step goes along the network's noise below the next sigma, and up to it by new noise.
    """
    sampling = model.inner_model.inner_model.model_sampling
    new_noise = default_noise_sampler(x, seed=extra_args.get("seed"))
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
        if callback is not None:
            callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        below = sampling.below(following) if following > 0 else following
        x = denoised + (x - denoised) * (below / sigma)
        if following > 0:
            x = x + new_noise(sigma, following) * (following**2 - below**2).sqrt()
    return x
