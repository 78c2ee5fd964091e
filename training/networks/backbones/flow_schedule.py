"""The schedule of a flow model, from its FlowMatchEulerDiscreteScheduler: x_t = (1 - t) x0 + t eps.

Timesteps, in settings and files, count thousandths of t and are what the network is told: 720 is t = 0.72, before and
behind any shift. The shift of a scheduler says where the teacher's own sampler puts its steps, and nothing else.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ...errors import UserError, quoted, quoted_value

NAME, TIMESTEPS = "FlowMatchEulerDiscreteScheduler", 1000


class FlowSampler:
    """Deterministic Euler steps, with the part of DDIMScheduler's interface that `ddim_sample` uses; `step` takes eps.

    At t = 1 noise alone goes in and eps tells nothing of the picture, so the first step is from t = 0.999.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler):
        self.scheduler, self.config = scheduler, scheduler.config
        self.timesteps = torch.empty(0, dtype=torch.long)

    def set_timesteps(self, steps: int, device: torch.device | str | None = None) -> None:
        """Whole timesteps [steps or fewer], from high to low: of very many steps some fall together."""
        self.scheduler.set_timesteps(steps)
        whole = self.scheduler.timesteps.round().long().clamp(1, TIMESTEPS - 1)
        self.timesteps = whole.unique().flip(0).to(device)

    def step(self, eps: Tensor, t: Tensor, x: Tensor) -> SimpleNamespace:
        """prev_sample: x at the next timestep, or x0 after the last; fp32 [n, c, h, w]."""
        later = self.timesteps[self.timesteps < t]
        now, following = int(t) / TIMESTEPS, int(later[0]) / TIMESTEPS if len(later) else 0.0
        x0 = (x - now * eps) / (1 - now)
        return SimpleNamespace(prev_sample=(1 - following) * x0 + following * eps)


def read_flow_schedule(config: dict[str, Any], source: str) -> FlowSampler:
    """Raises UserError for another schedule, or one that is damaged."""
    name = config.get("_class_name", NAME)
    if name != NAME:
        raise UserError(
            f"The teacher {quoted(source)} has the scheduler {quoted(name)}; this backbone is for flow models, which "
            f"have a {NAME}: copy scheduler/ again, or set another `backbone`."
        )
    if config.get("num_train_timesteps", TIMESTEPS) != TIMESTEPS:
        raise UserError(
            f"The scheduler of the teacher {quoted(source)} has num_train_timesteps "
            f"{quoted_value(config['num_train_timesteps'])}; a flow model is told {TIMESTEPS} t: copy scheduler/ again."
        )
    if config.get("use_dynamic_shifting") or config.get("invert_sigmas"):
        raise UserError(
            f"The scheduler of the teacher {quoted(source)} has use_dynamic_shifting or invert_sigmas, as no SD 3.x "
            f"has; write false there, or copy scheduler/ again."
        )
    try:
        sampler = FlowSampler(FlowMatchEulerDiscreteScheduler.from_config(config))
        sampler.set_timesteps(20)
        told = sampler.scheduler.timesteps
        falls = bool(told.isfinite().all() and (told[1:] < told[:-1]).all() and 0 < told[-1] and told[0] <= TIMESTEPS)
    except Exception as error:  # whatever diffusers and torch make of odd numbers
        raise UserError(
            f"The scheduler of the teacher {quoted(source)} cannot be read ({quoted(error)}); copy it again."
        ) from None
    if not falls:
        raise UserError(
            f"The scheduler of the teacher {quoted(source)} gives no timesteps that fall from {TIMESTEPS} to 0 (shift "
            f"{quoted_value(config.get('shift'))}); copy it again."
        )
    return sampler
