"""The student's update: variational score distillation (VSD), with a random guidance scale on both scores (PG-SB).

x0 = G(z, text);  x_t = alpha_t x0 + sigma_t noise;  gradient in x0: w(t) (eps_teacher - eps_lora)
eps = eps_null + kappa (eps_text - eps_null),  kappa ~ U(min, max), the same for both

Where the LoRA teacher's score has a t of its own, t', the gradient is the difference of each at its own, the noise that
both of them see taken off: w(t) (eps_teacher - noise) - w(t') (eps_lora - noise), which at t' = t is the same.
"""

from collections.abc import Callable

from torch import Tensor

from ..networks.backbones import LatentDiffusion
from ..networks.teachers import Teachers
from ..recipe.config import Vsd
from .clip import ClipLoss
from .guidance import Guidance, guided
from .losses import VSD_WEIGHTS, vsd_loss
from .one_step import OneStep
from .step import Step


class StudentUpdate:
    """watch_gap(t [n], eps_teacher - eps_lora [n, c, h, w]) sees how far the scores are apart. clip: that loss too."""

    role = "student"

    def __init__(
        self,
        one_step: OneStep,
        backbone: LatentDiffusion,
        teachers: Teachers,
        guidance: Guidance,
        settings: Vsd,
        clip: ClipLoss | None,
        watch_gap: Callable[[Tensor, Tensor], None],
    ):
        self.one_step, self.network, self.backbone, self.teachers = one_step, one_step.trained, backbone, teachers
        self.guidance, self.settings, self.clip, self.watch_gap = guidance, settings, clip, watch_gap

    def losses(self, step: Step) -> Callable[[slice], Tensor]:
        device = self.backbone.device
        random_kappas = self.guidance.draw(step.draws.generator, step.draws.batch_size)
        t, noise = step.draws.timesteps(self.settings.timesteps), step.draws.latents()
        own = self.settings.timesteps_lora
        t_lora = t if own is None else step.draws.timesteps(own)
        step.note("kappa", random_kappas[0])

        def of(rows: slice) -> Tensor:
            text, null, away = step.batch.text(rows), step.batch.null(rows), step.batch.away(rows)
            kappa_teacher, kappa_lora = self.guidance.scales(random_kappas, rows, device)
            x0 = self.one_step(self.network, step, rows)
            t_rows, own_t, noise_rows = t[rows].to(device), t_lora[rows].to(device), noise[rows].to(device)
            x_t, own_x = (self.backbone.add_noise(x0.detach(), noise_rows, at) for at in (t_rows, own_t))
            eps_teacher = guided(self.teachers.frozen, x_t, t_rows, text, away, kappa_teacher)
            eps_lora = guided(self.teachers.lora, own_x, own_t, text, null, kappa_lora)
            if own is None:
                losses = vsd_loss(x0, eps_teacher, eps_lora, self._weight(t_rows))
            else:
                pull = self._weight(t_rows) * (eps_teacher - noise_rows)
                losses = vsd_loss(x0, pull, self._weight(own_t) * (eps_lora - noise_rows), 1.0)
            step.note("vsd_loss", losses)
            if self.clip:
                of_clip = self.clip.losses(x0, step.batch, rows)
                step.note("clip_loss", of_clip)
                losses = losses + self.clip.weight(step.number) * of_clip
            step.x0[rows.start] = x0.detach()
            self.watch_gap(t_rows, eps_teacher - eps_lora)
            return losses

        return of

    def _weight(self, t: Tensor) -> Tensor:
        """w(t), fp32 [n, 1, 1, 1]."""
        weigh = VSD_WEIGHTS[self.settings.weight]
        return weigh(*self.backbone.coefficients(t), self.settings.x0_weight_cap)
