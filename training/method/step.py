"""One step of a run, and what an update of it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from .batches import Batch
from .draws import Draws


@dataclass
class Step:
    """What the updates of one step share: its random numbers, and the samples that the student is asked for.

    x0: the student's pictures of a part of the batch, [n, c, h, w], without a graph, by the part's first row.
    figures: what people watch, by name; a tensor a part, usually one number a sample.
    """

    number: int  # of the run, from 0
    draws: Draws
    z: Tensor | None = None  # noise [batch, c, h, w], on the CPU
    places: Tensor | None = None  # the step of the student's own for each sample, int64 [batch]; None: the first
    fresh: list[Tensor] = field(default_factory=list)  # noise like z, for each of its steps after the first
    batch: Batch | None = None
    alpha: float | None = None  # NASA-T's strength
    x0: dict[int, Tensor] = field(default_factory=dict)
    figures: dict[str, list[Tensor]] = field(default_factory=dict)

    def draw_samples(self, steps: int) -> None:
        """New noise, and of a student of several steps the one that each sample is asked for."""
        self.z, self.x0 = self.draws.latents(), {}
        if steps > 1:
            self.places = self.draws.places(steps)
            self.fresh = [self.draws.latents() for _ in range(steps - 1)]

    def note(self, name: str, values: Tensor) -> None:
        self.figures.setdefault(name, []).append(values.detach().flatten())


class Update(Protocol):
    """One change of one network: the student's, or the LoRA teacher's. It knows neither optimiser nor machine."""

    role: str  # "student" or "lora": whose weights it trains
    network: nn.Module  # that network, as it is called for training

    def losses(self, step: Step) -> Callable[[slice], Tensor]:
        """Draws for the whole batch. Returns what computes, with a graph, one loss a sample of the rows given, [n]."""
