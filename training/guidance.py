"""Classifier-free guidance, and the random scale that is the whole of PG-SB's difference from SwiftBrush."""

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def draw_kappa(bounds: tuple[float, float], generator: torch.Generator) -> float:
    """kappa ~ U(min, max): one number per iteration, the same for both scores."""
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator).item()


def guided(predict: Predict, x_t: Tensor, t: Tensor, text: Tensor, null: Tensor, kappa: float) -> Tensor:
    """eps_null + kappa (eps_text - eps_null), both halves in one batched call of `predict(x_t, t, text)`.

    x_t [n, c, h, w]; t [n]; text and null [n, tokens, width]; returns eps [n, c, h, w]. kappa 1 is the plain
    conditional prediction and costs one half.
    """
    if kappa == 1.0:
        return predict(x_t, t, text)
    eps_text, eps_null = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([text, null])).chunk(2)
    return torch.lerp(eps_null, eps_text, kappa)
