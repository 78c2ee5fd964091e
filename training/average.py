"""The exponential moving average (EMA) of the student's trainable weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .student import load_student, student_state


class Average:
    """average <- decay * average + (1 - decay) * weights after every student update; on the CPU if asked."""

    def __init__(self, student: nn.Module, decay: float, on_cpu: bool = False):
        self.student, self.decay = student, decay
        self.weights = [weight for weight in student.parameters() if weight.requires_grad]
        self.device = torch.device("cpu") if on_cpu else self.weights[0].device
        self.means = [weight.detach().to(self.device, copy=True) for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        weights = [weight.to(self.device) for weight in self.weights]
        torch._foreach_lerp_(self.means, weights, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the student itself holds the average."""
        held = [weight.data for weight in self.weights]
        for weight, mean in zip(self.weights, self.means, strict=True):
            weight.data = mean.to(weight.device)
        try:
            yield
        finally:
            for weight, data in zip(self.weights, held, strict=True):
                weight.data = data

    def state(self) -> dict[str, Tensor]:
        """As `student_state` names it."""
        with self.in_place():
            return student_state(self.student)

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        with self.in_place():
            load_student(self.student, state)
            for weight, mean in zip(self.weights, self.means, strict=True):
                mean.copy_(weight)
