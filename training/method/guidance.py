"""Classifier-free guidance, and the random scale that is the whole of PG-SB's difference from SwiftBrush."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..networks.text import Text

Predict = Callable[[Tensor, Tensor, Text], Tensor]


def draw_kappa(bounds: tuple[float, float], generator: torch.Generator, count: int = 1) -> Tensor:
    """kappa ~ U(min, max), fp32 [count, 1, 1, 1] on the CPU; both scores of a step take the same."""
    low, high = bounds
    return low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator)


@dataclass(frozen=True)
class Guidance:
    """The settings kappa, kappa_per, cfg_on and fixed_kappa: which of the two scores gets which scale."""

    kappa: tuple[float, float]
    per: Literal["batch", "sample"]
    on: Literal["both", "teacher", "lora", "none"]
    fixed: float

    def draw(self, generator: torch.Generator, batch_size: int) -> Tensor:
        """The random scales of a step, fp32 [1 or batch, 1, 1, 1] on the CPU."""
        return draw_kappa(self.kappa, generator, batch_size if self.per == "sample" else 1)

    def scales(self, drawn: Tensor, rows: slice, device: torch.device) -> tuple[Tensor | float, Tensor | float]:
        """What the frozen teacher and the LoRA teacher get for these rows, of what was drawn."""
        kappa = drawn[rows if self.per == "sample" else slice(None)].to(device)
        kappa_teacher = kappa if self.on in ("both", "teacher") else self.fixed
        kappa_lora = kappa if self.on in ("both", "lora") else self.fixed
        return kappa_teacher, kappa_lora


def unequal_scales(cfg_on: str, kappa: tuple[float, float], fixed: float) -> str | None:
    """One sentence if one score alone has the random scale and the other's is not about its mean; else None.

    In closed form (tests/training/test_gaussian.py), means of -2 and 2, kappa ~ U(.5, 4) on the teacher alone: a fixed
    scale of 1 / 2.25 / 4.5 ends at 2.7 / 2.0 / 1.1.
    """
    mean = sum(kappa) / 2
    if cfg_on not in ("teacher", "lora") or abs(fixed - mean) <= 0.1 * mean:
        return None
    return (
        f"cfg_on is {cfg_on} and fixed_kappa {fixed:g}: the two scores get different guidance on average, which pulls "
        f"the student away from the teacher; set `fixed_kappa: {mean:g}`, the mean of kappa."
    )


def guided(predict: Predict, x_t: Tensor, t: Tensor, text: Text, null: Text, kappa: Tensor | float) -> Tensor:
    """eps_null + kappa (eps_text - eps_null), both halves in one batched call of `predict(x_t, t, text)`.

    x_t [n, c, h, w]; t [n]; text and null [n] prompts; kappa a number, or a tensor that broadcasts against x_t.
    Returns eps [n, c, h, w]. The number 1 is the plain conditional prediction and costs one half.
    """
    if isinstance(kappa, float) and kappa == 1.0:
        return predict(x_t, t, text)
    both = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), Text.join(text, null))
    eps_text, eps_null = both.chunk(2)
    return eps_null + kappa * (eps_text - eps_null)
