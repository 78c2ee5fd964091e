"""The student as it is used: noise and a prompt in, a picture out, in one step or in one of a few.

Of a student of several steps each sample is asked for one of them, and given there what it will be given when it is
used: the picture of its own step before, made without a graph, with fresh noise (DMD2's backward simulation).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.backbones import LatentDiffusion
from ..networks.nasa import nasa_arguments
from ..recipe.config import Start
from .step import Step


class OneStep:
    """student: the network itself. trained: what a call with a graph goes to, that network or its wrapper for several
    processes. autocast: around what a network computes outside its own call. split: whether every process holds but a
    part of the student, so that all must call it equally often."""

    def __init__(
        self,
        student: nn.Module,
        trained: nn.Module,
        backbone: LatentDiffusion,
        start: Start,
        autocast: Callable[[], AbstractContextManager],
        split: bool = False,
    ):
        self.student, self.trained, self.backbone = student, trained, backbone
        self.start, self.autocast, self.split = start, autocast, split

    def __call__(self, network: nn.Module, step: Step, rows: slice) -> Tensor:
        """x0 [n, c, h, w] of those rows of the step's samples; in NASA-T steered away from their negative prompts."""
        z, text = step.z[rows].to(self.backbone.device), step.batch.text(rows)
        x, t = self.backbone.first_input(z, self.start.timestep, self.start.noise)
        if step.places is not None:
            x, t = self._simulated(x, step, rows)
        return self.backbone.picture(network, x, t, text, **self._steering(step, rows))

    @torch.no_grad()
    def _simulated(self, x: Tensor, step: Step, rows: slice) -> tuple[Tensor, Tensor]:
        """What the student is given at each sample's own step, and when: x [n, c, h, w], t [n]. x: at the first."""
        x, places, text = x.clone(), step.places[rows], step.batch.text(rows)
        timesteps = torch.tensor(self.start.timesteps, device=x.device)
        last = step.places.max() if self.split else places.max()
        for place in range(int(last)):
            going = (places > place).nonzero().flatten()
            called = going if len(going) else torch.tensor([0])  # one for the others' sake, of which nothing is kept
            t, steering = timesteps[place].expand(len(called)), self._steering(step, rows, called)
            x0 = self.backbone.picture(self.student, x[called], t, text[called], **steering)
            if len(going):
                fresh, t = step.fresh[place][rows][going].to(x.device), timesteps[place + 1].expand(len(going))
                x[going] = self.backbone.add_noise(x0, fresh, t)
        return x, timesteps[places]

    def _steering(self, step: Step, rows: slice, among: Tensor | slice = slice(None)) -> dict[str, Any]:
        """NASA-T's arguments of a call, for `among` those rows."""
        if step.alpha is not None:
            away = step.batch.away(rows)[among]
            with self.autocast():
                return nasa_arguments(self.student, away.embeddings, step.alpha, away.mask)
        return {}
