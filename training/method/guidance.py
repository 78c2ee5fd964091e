"""Classifier-free guidance, and the random scale that is the whole of PG-SB's difference from SwiftBrush."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..networks.text import Text

Predict = Callable[[Tensor, Tensor, Text], Tensor]


def draw_kappa(bounds: tuple[float, float], generator: torch.Generator, count: int = 1) -> Tensor:
    """kappa ~ U(min, max), fp32 [count, 1, 1, 1] on the CPU."""
    low, high = bounds
    return low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator)


@dataclass(frozen=True)
class Guidance:
    """The settings kappa, kappa_per, cfg_on, fixed_kappa and kappa_lora: which of the two scores gets which scale."""

    kappa: tuple[float, float]
    per: Literal["batch", "sample"]
    on: Literal["both", "teacher", "lora", "none"]
    fixed: float
    of_lora: tuple[float, float] | None = None

    def draw(self, generator: torch.Generator, batch_size: int) -> tuple[Tensor, Tensor]:
        """A step's random scales of the frozen teacher and of the LoRA teacher, one draw for both unless that has a
        range of its own; fp32 [1 or batch, 1, 1, 1] on the CPU."""
        count = batch_size if self.per == "sample" else 1
        kappa = draw_kappa(self.kappa, generator, count)
        return kappa, kappa if self.of_lora is None else draw_kappa(self.of_lora, generator, count)

    def scales(
        self, drawn: tuple[Tensor, Tensor], rows: slice, device: torch.device
    ) -> tuple[Tensor | float, Tensor | float]:
        """What the frozen teacher and the LoRA teacher get for these rows, of what was drawn."""
        kappa, of_lora = (one[rows if self.per == "sample" else slice(None)].to(device) for one in drawn)
        kappa_teacher = kappa if self.on in ("both", "teacher") else self.fixed
        kappa_lora = of_lora if self.on in ("both", "lora") else self.fixed
        return kappa_teacher, kappa_lora


def unequal_scales(
    cfg_on: str, kappa: tuple[float, float], fixed: float, of_lora: tuple[float, float] | None = None
) -> str | None:
    """One sentence if the scales of the two scores are not about the same in the mean; else None.

    In closed form (tests/training/test_gaussian.py), means of -2 and 2, kappa ~ U(.5, 4) on the teacher alone: a fixed
    scale of 1 / 2.25 / 4.5 ends at 2.7 / 2.0 / 1.1.
    """
    mean = sum(of_lora if of_lora and cfg_on == "lora" else kappa) / 2
    if cfg_on == "both" and of_lora and abs(sum(of_lora) / 2 - mean) > 0.1 * mean:
        return (
            f"the mean of kappa is {mean:g} and that of kappa_lora {sum(of_lora) / 2:g}: the two scores get different "
            f"guidance on average, which pulls the student away from the teacher; leave kappa_lora out unless you want "
            f"that (Decoupled DMD)."
        )
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
