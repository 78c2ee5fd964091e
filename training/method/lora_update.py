"""The LoRA teacher's update: denoising score matching on the student's own pictures, w(t) |eps - noise|^2."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..networks.backbones import LatentDiffusion
from ..networks.teachers import Teachers
from ..recipe.config import Lora
from .batches import Batches
from .losses import LORA_WEIGHTS, lora_loss
from .one_step import OneStep
from .step import Step


class LoraUpdate:
    """Update number `index` of a step. The first takes the step's samples, as they were before the student's update;
    the others, where the settings say `fresh`, samples of their own (DMD2's two time scales).

    fresh_batch: the number, among all batches, of a step's `index`th.
    """

    role = "lora"

    def __init__(
        self,
        index: int,
        one_step: OneStep,
        backbone: LatentDiffusion,
        teachers: Teachers,
        settings: Lora,
        batches: Batches,
        fresh_batch: Callable[[int, int], int],
    ):
        self.index, self.one_step, self.backbone, self.teachers = index, one_step, backbone, teachers
        self.settings, self.batches, self.fresh_batch, self.network = settings, batches, fresh_batch, teachers.trained

    def losses(self, step: Step) -> Callable[[slice], Tensor]:
        device = self.backbone.device
        if self.index and self.settings.fresh:
            step.draw_samples(self.one_step.start.steps)
            if self.settings.fresh_prompts:
                step.batch = self.batches(self.fresh_batch(step.number, self.index))
        t, noise = step.draws.timesteps(self.settings.timesteps), step.draws.latents()
        blind = step.draws.uniform() < self.settings.null_probability
        step.figures.pop("lora_loss", None)  # of the step's last update alone

        def of(rows: slice) -> Tensor:
            if rows.start not in step.x0:
                step.x0[rows.start] = self._picture(step, rows)
            t_rows, noise_rows = t[rows].to(device), noise[rows].to(device)
            x_t = self.backbone.add_noise(step.x0[rows.start], noise_rows, t_rows)
            seen = step.batch.null(rows) if blind else step.batch.text(rows)
            eps = self.teachers.lora_in_training(x_t, t_rows, seen)
            weight = LORA_WEIGHTS[self.settings.weight](self.backbone.coefficients(t_rows)[0])
            losses = lora_loss(eps, noise_rows, weight)
            step.note("lora_loss", losses)
            return losses

        return of

    @torch.no_grad()
    def _picture(self, step: Step, rows: slice) -> Tensor:
        return self.one_step(self.one_step.student, step, rows)
