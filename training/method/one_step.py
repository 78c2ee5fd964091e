"""The student as it is used: noise and a prompt in, a picture out, in one step."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from ..networks.backbones import LatentDiffusion
from ..networks.nasa import nasa_arguments
from ..recipe.config import Start
from .step import Step


class OneStep:
    """student: the network itself. trained: what a call with a graph goes to, that network or its wrapper for several
    processes. autocast: around what a network computes outside its own call."""

    def __init__(
        self,
        student: nn.Module,
        trained: nn.Module,
        backbone: LatentDiffusion,
        start: Start,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.student, self.trained, self.backbone, self.start, self.autocast = (
            student,
            trained,
            backbone,
            start,
            autocast,
        )

    def __call__(self, network: nn.Module, step: Step, rows: slice) -> Tensor:
        """x0 [n, c, h, w] of those rows of the step's samples; in NASA-T steered away from their negative prompts."""
        steering = {}
        if step.alpha is not None:
            away = step.batch.away(rows)
            with self.autocast():
                steering = nasa_arguments(self.student, away.embeddings, step.alpha, away.mask)
        z, text = step.z[rows].to(self.backbone.device), step.batch.text(rows)
        return self.backbone.one_step(network, z, text, self.start.timestep, self.start.noise, **steering)
