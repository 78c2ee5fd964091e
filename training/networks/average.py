"""The exponential moving average (EMA) of the student's trainable weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import own_part, whole_copy
from .student import load_student, student_state


class Average:
    """average <- decay * average + (1 - decay) * weights after every student update; on the CPU if asked.

    ramp: update n, counted from 0, takes at most (1 + n) / (10 + n) as decay (diffusers' EMAModel).

    Of a student that is split over the processes, each averages its own part; all call the same methods.
    """

    def __init__(self, student: nn.Module, decay: float, ramp: bool, on_cpu: bool = False):
        self.student, self.decay, self.ramp = student, decay, ramp
        self.weights = [own_part(weight) for weight in student.parameters() if weight.requires_grad]
        self.device = torch.device("cpu") if on_cpu else self.weights[0].device
        self.means = [weight.to(self.device, copy=True) for weight in self.weights]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """number: how many updates came before."""
        decay = min(self.decay, (1 + number) / (10 + number)) if self.ramp else self.decay
        weights = [weight.to(self.device) for weight in self.weights]
        torch._foreach_lerp_(self.means, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the student itself holds the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """One weight at a time, in place: no second copy of the network is needed."""
        for weight, mean in zip(self.weights, self.means, strict=True):
            held = weight.clone()
            weight.copy_(mean)
            mean.copy_(held)

    def state(self, keep: bool = True) -> dict[str, Tensor | None]:
        """As `student_state` names it, copied to the CPU; None for each tensor in a process that does not `keep` it."""
        with self.in_place():
            return {name: whole_copy(tensor, keep) for name, tensor in student_state(self.student).items()}

    def load(self, state: dict[str, Tensor]) -> None:
        with self.in_place():
            load_student(self.student, state)
