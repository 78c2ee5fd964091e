"""A student split over the processes (FSDP): each holds a part of every weight, gradient and optimiser state.

The weights of a layer are gathered for its own forward and backward, and dropped again. The teachers stay whole: they
are frozen, so they have no gradients and no optimiser states, which are most of what there is to split.
"""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UserError

#: diffusers' classes of single layers; whatever is in none of them is gathered once for a whole forward.
LAYERS = ("BasicTransformerBlock", "JointTransformerBlock", "ResnetBlock2D")


def check_can_shard(network: nn.Module, optimizer: str, nasa: bool) -> None:
    """Raises UserError for what a split student cannot be."""
    cannot = {
        "is a LoRA, which is small already": isinstance(network, peft.PeftModel),
        "is optimised by adamw_8bit": optimizer == "adamw_8bit",
        "trains with NASA and is a PixArt": nasa and hasattr(network, "caption_projection"),
    }
    for reason, holds in cannot.items():
        if holds:
            raise UserError(
                f"student.shard (or accelerate's FSDP) cannot split a student that {reason}; set one of both back."
            )


def layers(network: nn.Module) -> Iterator[nn.Module]:
    return (module for module in network.modules() if type(module).__name__ in LAYERS)


def shard(network: nn.Module, device: torch.device, processes: int) -> None:
    """Splits `network`, alike in all processes, where it is; its parameters are new objects afterwards."""
    mesh = init_device_mesh(device.type, (processes,))
    for module in [*layers(network), network]:
        # The outermost too: kept whole after a forward without a graph, it would miss the update that follows.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def gathered_at_once(network: nn.Module) -> int:
    """How many weights a process holds whole at most: what is in no layer, and two layers, one of them in advance."""
    sizes = sorted(sum(weight.numel() for weight in layer.parameters()) for layer in layers(network))
    return sum(weight.numel() for weight in network.parameters()) - sum(sizes) + sum(sizes[-2:])


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory: all of one that is not split."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """`tensor`, put together on its device where it is split. All processes call it."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def whole_copy(tensor: Tensor, keep: bool) -> Tensor | None:
    """`tensor` whole, copied to the CPU. All processes call it; None where it is not to `keep`."""
    found = whole(tensor)
    return found.to("cpu", copy=not isinstance(tensor, DTensor)) if keep else None


def put_together(state: Any, keep: bool) -> Any:
    """A state dict with its split tensors put together on the CPU and all else as it is.

    All processes call it; those that do not `keep` get None for each split tensor.
    """
    if isinstance(state, dict):
        return {key: put_together(value, keep) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [put_together(value, keep) for value in state]
    return whole_copy(state, keep) if isinstance(state, DTensor) else state


def split_as(tensor: Tensor, weight: Tensor | None) -> Tensor:
    """A whole tensor, alike in all processes, split as `weight` is; itself where that is not split, or is none."""
    if not isinstance(weight, DTensor):
        return tensor
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """A whole optimiser state into one whose weights may be split."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(value: Any, weight: nn.Parameter) -> Any:
        alike = torch.is_tensor(value) and value.shape == weight.shape  # not so a count of steps
        return split_as(value, weight) if alike else value

    parts = {
        index: {key: part(value, weights[index]) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})
