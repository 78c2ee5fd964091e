"""What a run trains, and therefore saves: two networks' weights, their optimisers, the student's average."""

from typing import Any

import torch
from torch import nn

from ..method.pgsb import Phase
from ..networks.average import Average
from ..networks.sharding import load_optimizer, put_together
from ..networks.student import student_state
from ..networks.teachers import Teachers
from ..recipe.config import Lora, Student
from .checkpoint import Checkpoint
from .machine import make_optimizer
from .schedule import schedule


class Trained:
    """weights: {role: its trainable weights}. optimizers: {role: of these}. average: None where there is none (yet).

    trained_in: {role: its steps of distillation}. averaging: whether this process keeps the average. bad_steps: updates
    skipped so far, for NaN or Inf.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Teachers,
        settings: Student,
        lora: Lora,
        optimizer: str,
        trained_in: dict[str, range],
        averaging: bool,
    ):
        self.student, self.teachers, self.settings, self.lora = student, teachers, settings, lora
        self.kind, self.averaging = optimizer, averaging
        trainable = [weight for weight in student.parameters() if weight.requires_grad]
        self.weights = {"student": trainable, "lora": teachers.parameters()}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "lora": make_optimizer(optimizer, self.weights["lora"], lora.learning_rate, lora.betas, lora.weight_decay)
        }
        self.schedules = {
            role: schedule(own.schedule, own.warmup_steps, trained_in[role])
            for role, own in (("student", settings), ("lora", lora))
        }
        self.average: Average | None = None
        self.phase: Phase | None = None
        self.bad_steps = 0

    def begin(self, phase: Phase) -> None:
        """Distillation begins with an optimiser that has not seen the regression, and with the average."""
        if self.phase is None or phase.averaged != self.phase.averaged:
            settings = self.settings
            rest = (phase.rate, phase.betas, settings.weight_decay)
            self.optimizers["student"] = make_optimizer(self.kind, self.weights["student"], *rest)
            if phase.averaged and self.averaging and settings.ema_decay is not None:
                on_cpu = settings.ema_device == "cpu"
                self.average = Average(self.student, settings.ema_decay, settings.ema_ramp, on_cpu)
        self.phase = phase

    def set_rates(self, step: int) -> None:
        """Each optimiser's learning rate for that step, a product of the settings and the step alone."""
        for role, rate in (("student", self.phase.rate), ("lora", self.lora.learning_rate)):
            for group in self.optimizers[role].param_groups:
                group["lr"] = rate * self.schedules[role](step)

    def rate(self, role: str) -> float:
        """The learning rate of this step."""
        return self.optimizers[role].param_groups[0]["lr"]

    def load(self, saved: Checkpoint, phase: Phase) -> None:
        """Optimisers and average of a checkpoint that was saved in `phase`; the networks hold its weights already."""
        self.begin(phase)
        self.bad_steps = saved.state["bad_steps"]
        load_optimizer(self.optimizers["student"], saved.optimizers["student"])
        self.optimizers["lora"].load_state_dict(saved.optimizers["lora"])
        if self.average and "ema" in saved.weights:
            self.average.load(saved.weights["student"] | saved.weights["ema"])

    def checkpoint(self, step: int, keep: bool) -> Checkpoint:
        """All processes join, each for its part of a split student; what it returns is whole in those that `keep`."""
        weights: dict[str, Any] = {
            "student": put_together(student_state(self.student), keep),
            "lora": self.teachers.state(),
        }
        if self.average:
            weights["ema"] = self.average.state(keep)
        states = {role: self.optimizers[role].state_dict() for role in ("student", "lora")}
        return Checkpoint(weights, put_together(states, keep), {"step": step, "bad_steps": self.bad_steps})
