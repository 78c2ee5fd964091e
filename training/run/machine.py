"""The chores of running on a CPU, a GPU or several: devices, shares of a batch, memory, what one process tells all."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, DistributedType
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from torch import Tensor, nn

from ..errors import UserError, quoted, quoted_value
from ..networks.sharding import own_part

LATE = 10.0  # seconds that a network disk may take to show a new file to another machine
OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2}  # a weight


def make_accelerator(
    device: str, mixed_precision: str, tracker: str | None, run: Path, shard: bool
) -> tuple[Accelerator, bool]:
    """accelerate as the run needs it, and whether the student is to be split over its processes.

    The first three and `shard` are the settings of those names; run: its folder.

    Raises UserError for a device or tracker that is not here, or a split by anything but FSDP.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no GPU here; write `device: auto` or `device: cpu`.")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu:
        torch.set_flush_denormal(True)  # Adam's tiny second moments are slow as denormals
    if tracker is not None and tracker not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        raise UserError(f"tracker is {quoted_value(tracker)}; allowed is one of {known}.")
    # Taken from accelerate, which would split all that it prepares: the LoRA teacher is better left whole.
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    try:
        accelerator = Accelerator(
            mixed_precision=precision_of(mixed_precision, device),
            # not from ACCELERATE_GRADIENT_ACCUMULATION_STEPS, which would divide every gradient: micro_batch does that
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            cpu=on_cpu,
            log_with=tracker,
            project_dir=run,
        )
    except (ValueError, ImportError, RuntimeError) as error:  # its many environment variables among the reasons
        raise UserError(f"accelerate cannot start: {quoted(error)}") from None
    if tracker is not None and not accelerator.log_with:
        raise UserError(f"tracker is {tracker}, but it is not installed; `pip install {tracker}`, or `tracker: null`.")
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(
            f"accelerate is set up for {accelerator.distributed_type.value}; run `accelerate config` for plain "
            f"multi-GPU, and write `student: {{shard: true}}` (FSDP) to split what DeepSpeed's ZeRO-3 splits."
        )
    return accelerator, (fsdp or shard) and accelerator.num_processes > 1


def precision_of(mixed_precision: str, device: str) -> str:
    """ "bf16" or "no" of the two settings; auto is bf16 on GPUs that have it."""
    if mixed_precision != "auto":
        return mixed_precision
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no"


def shares(batch: int, micro_batch: int | None, accelerator: Accelerator) -> list[slice]:
    """The rows of the global batch that this process computes, a slice for each forward. Raises UserError."""
    share, size = share_of(batch, micro_batch, accelerator.num_processes)
    first = share * accelerator.process_index
    return [slice(start, start + size) for start in range(first, first + share, size)]


def share_of(batch: int, micro_batch: int | None, processes: int) -> tuple[int, int]:
    """How many samples of the batch one process computes, and how many at once. Raises UserError."""
    if batch % processes:
        raise UserError(f"batch_size is {batch}; {processes} processes share it, so write a multiple of {processes}.")
    share = batch // processes
    size = min(micro_batch or share, share)
    if share % size:
        raise UserError(f"micro_batch is {size}; it must divide {share}, the share of one process.")
    return share, size


@contextlib.contextmanager
def gathering(accelerator: Accelerator, network: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of one part of a batch: processes exchange gradients at the last one only."""
    with contextlib.nullcontext() if last else accelerator.no_sync(network):
        yield


def on_main(accelerator: Accelerator, action: Callable[..., Any], *arguments: Any) -> Any:
    """action(*arguments) in the first process while the others wait; all get what it returns, a small thing.

    What ends it is raised in all: none hangs.
    """
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found = [action(*arguments), None]
        except (UserError, KeyboardInterrupt) as error:
            found = [None, error]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def main_first(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """make() in the first process, then in the others, which find on the disk what it left there."""
    made: list[Any] = []
    on_main(accelerator, lambda: made.append(make()))
    return made[0] if made else make()


def check_one_folder(accelerator: Accelerator, run: Path) -> None:
    """Raises UserError, in all processes, unless all of them see the run folder of the first.

    On several machines each may have a disk of its own under one name; the others would find neither checkpoints nor
    what the first prepares.
    """
    if accelerator.num_processes == 1:
        return
    mark = run / f".seen-{on_main(accelerator, secrets.token_hex, 8)}"
    on_main(accelerator, mark.touch)
    seen = _appears(mark)
    blind = torch.zeros(accelerator.num_processes, device=accelerator.device)
    blind[accelerator.process_index] = not seen
    blind = accelerator.reduce(blind, "sum").nonzero().flatten().tolist()
    on_main(accelerator, mark.unlink)
    if blind:
        raise UserError(
            f"{quoted(run)} is not one folder for all {accelerator.num_processes} processes (another one for number "
            f"{', '.join(map(str, blind))}, counted from 0); give an --output on a disk that all machines share."
        )


def _appears(path: Path) -> bool:
    """Whether the file is there, or comes within a while: network disks may show it late."""
    ends = time.monotonic() + LATE
    while not path.exists():
        if time.monotonic() > ends:
            return False
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # asks the disk again
        time.sleep(0.2)
    return True


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is up in any process."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def mean_figures(accelerator: Accelerator, figures: dict[str, float | Tensor]) -> dict[str, float]:
    """Every figure averaged over the processes, by one exchange and one wait for the device."""
    device = accelerator.device
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in figures.values()])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, "mean")
    return dict(zip(figures, values.tolist(), strict=True))


def make_optimizer(
    kind: str, weights: list[nn.Parameter], learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form by bitsandbytes. Raises UserError where that is not installed."""
    if kind == "adamw":
        # fused: one pass over the weights, without copies of them
        return torch.optim.AdamW(weights, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "optimizer is adamw_8bit, which needs bitsandbytes; `pip install bitsandbytes`, or `optimizer: adamw`."
        ) from None
    return AdamW8bit(weights, lr=learning_rate, betas=betas, weight_decay=weight_decay)


def memory_gib(device: torch.device) -> float:
    """Peak memory of the GPU's tensors; on the CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def check_memory(optimizer: str, device: torch.device, weights: list[nn.Parameter], remedies: str) -> None:
    """Raises UserError where the gradients and optimiser states of these weights alone do not fit in what is free.

    Of weights that are split over the processes, this one's parts count. remedies: the sentence's end.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    needed = sum(own_part(weight).numel() for weight in weights) * (4 + OPTIMIZER_BYTES[optimizer])
    if needed > free:
        raise UserError(
            f"Too little memory: gradients and optimiser states take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are "
            f"free; {remedies}."
        )


def is_out_of_memory(error: Exception) -> bool:
    """torch.OutOfMemoryError is a RuntimeError; so is the CPU's refusal."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def out_of_memory_told(remedies: str) -> Iterator[None]:
    """Out of memory as one sentence that names what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"Out of memory; {remedies}. The last checkpoint is whole: --resume goes on.") from None
