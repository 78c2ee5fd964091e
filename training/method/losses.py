"""The losses of PG-SB: pure functions of tensors, each with its equation.

Notation: x_t = alpha_t x0 + sigma_t eps; in diffusion alpha_t^2 + sigma_t^2 = 1, in flow alpha_t = 1 - t and sigma_t =
t. Either way eps_teacher - eps_lora = -(alpha_t / sigma_t) (x0_teacher - x0_lora). Latents are [batch, ...] fp32; alpha
and sigma broadcast against them. A loss is one number a sample, [batch]: who calls takes their mean, or weighs them, or
draws them over t.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def vsd_loss(x0: Tensor, eps_teacher: Tensor, eps_lora: Tensor, weight: Tensor | float) -> Tensor:
    """0.5 * MSE(x0, stopgrad(x0 - w (eps_teacher - eps_lora))) of each sample, [n].

    The gradient of their mean in x0 is w (eps_teacher - eps_lora) / x0.numel(): the score difference, no network's
    Jacobian (SwiftBrush, equation 6; the form is that of its published code).
    """
    target = (x0 - weight * (eps_teacher - eps_lora)).detach()
    return 0.5 * _mean_square(x0 - target)


def lora_loss(eps: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """mean(w (eps - noise)^2) of each sample, [n]: denoising score matching on the student's own pictures."""
    return (weight * (eps - noise).square()).flatten(1).mean(1)


def clamped_clip_loss(images: Tensor, texts: Tensor, margin: float) -> Tensor:
    """relu(tau - cos(image, text)) of each sample, [n], tau being the margin (SwiftBrush v2).

    A picture that is close enough is pulled no closer. images and texts: CLIP embeddings [n, width], of any length.
    """
    return (margin - torch.cosine_similarity(images, texts)).clamp(min=0)


def falling_weight(first: float, last: float, step: int, steps: int) -> float:
    """The weight of the CLIP loss: first * (last / first)^(step / steps).

    With last / first = .0014 that of swiftcontrol's code. No such curve begins or ends at 0: there it is linear, first
    at step 0 and last at step steps - 1.
    """
    if first and last:
        return first * (last / first) ** min(step / steps, 1.0)
    return first + (last - first) * min(step / max(steps - 1, 1), 1.0)


def regression_loss(x0: Tensor, target: Tensor) -> Tensor:
    """mean((x0 - target)^2) of each sample, [n], target being the teacher's own from the same noise."""
    return _mean_square(x0 - target)


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(1)


def sigma_squared_weight(alpha: Tensor, sigma: Tensor, cap: float) -> Tensor:
    """w = sigma_t^2 (SwiftBrush's code); at most 1, so the cap does not matter."""
    return sigma.square()


def x0_weight(alpha: Tensor, sigma: Tensor, cap: float) -> Tensor:
    """w = min(sigma_t / alpha_t, cap): below the cap w (eps_teacher - eps_lora) is exactly x0_lora - x0_teacher."""
    return (sigma / alpha).clamp(max=cap)


def alpha_squared_weight(alpha: Tensor) -> Tensor:
    """w = alpha_t^2 (SwiftBrush's code)."""
    return alpha.square()


def uniform_weight(alpha: Tensor) -> Tensor:
    """w = 1."""
    return torch.ones_like(alpha)


def velocity_weight(alpha: Tensor) -> Tensor:
    """w = 1 / alpha_t^2: the plain error of v, by which flow models are trained: alpha_t (v - v') = eps - eps'."""
    return 1 / alpha.square()


VSD_WEIGHTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "sigma_squared": sigma_squared_weight,
    "x0": x0_weight,
}
LORA_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "alpha_squared": alpha_squared_weight,
    "uniform": uniform_weight,
    "velocity": velocity_weight,
}
