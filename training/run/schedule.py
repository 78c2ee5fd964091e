"""What becomes of a learning rate over a run: the curves of diffusers.optimization."""

from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler

from ..recipe.config import Schedule


def schedule(kind: Schedule, warmup: int, steps: range) -> Callable[[int], float]:
    """By what the rate is multiplied at a step of the run: 1 before `steps`, then up from 0 in `warmup` of them, then
    constant, or down to 0 at their end.

    A function of the step alone, so that a resumed run needs no state of it.
    """
    name = "constant_with_warmup" if kind == "constant" and warmup else kind
    nobody = torch.optim.SGD([torch.zeros(1)])  # diffusers hands its curves out with an optimiser alone
    (curve,) = get_scheduler(name, nobody, num_warmup_steps=warmup, num_training_steps=len(steps)).lr_lambdas
    return lambda step: 1.0 if step < steps.start else float(curve(step - steps.start))
