"""One update on this machine: its part of the batch forward and backward, then one step of the optimiser."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..networks.sharding import whole
from .machine import gathering


def update(
    accelerator: Accelerator,
    parts: list[slice],
    network: nn.Module,
    losses: Callable[[slice], Tensor],
    optimizer: torch.optim.Optimizer,
    largest_norm: float,
) -> tuple[bool, Tensor]:
    """Mean of the losses over the batch, its gradient clipped to `largest_norm`, and a step of the optimiser.

    parts: this process's rows of the batch, a slice for each forward. losses: as an Update gives them. Returns whether
    the step was made (not so where loss or gradient is NaN or Inf: weights and optimiser stay as they are), and the
    gradient's norm.
    """
    means = []
    for rows in parts:
        with gathering(accelerator, network, last=rows is parts[-1]):
            loss = losses(rows).mean()
            accelerator.backward(loss / len(parts))
        means.append(loss.detach())
    loss = accelerator.reduce(torch.stack(means).mean(), "mean")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = whole(accelerator.clip_grad_norm_(weights, largest_norm))
    if finite := bool(torch.isfinite(norm) & torch.isfinite(loss)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return finite, norm
