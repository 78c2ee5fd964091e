"""Runs of the shipped loop in fp64, each in one process and in two: a script that test_parallel.py calls.

    echo '[{"output": "runs/a", ...}]' | PYTHONPATH=. python tests/training/two_processes.py

Of each of these settings it leaves the runs OUTPUT/one, OUTPUT/two and, of a student that is no LoRA, OUTPUT/split. In
fp64, for in fp32 two scores that lie close together cancel, and what is left differs by rounding: in that the trainer's
fp32 is fp64 here, which is the one thing that is not as shipped.
"""

import json
import os
import socket
import sys
import traceback

import torch
from accelerate.state import AcceleratorState

from training.distill import distill
from training.networks.backbones import backbone_class, sources
from training.recipe.config import parse


def in_double_precision() -> None:
    """What is drawn, loaded and cast."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    torch.nn.Module.float = torch.nn.Module.double
    checked = sources.checked
    sources.checked = lambda network, *names: checked(network, *names).double()


def ways(settings: dict, processes: int) -> dict[str, dict]:
    """{name: settings that differ}."""
    if processes == 1:
        return {"one": {}}
    split = {"student": settings["student"] | {"shard": True}, "micro_batch": 2, "gradient_checkpointing": True}
    return {"two": {}} | ({} if "lora" in settings["student"] else {"split": split})


def work(cases: list[dict], processes: int, rank: int, port: int) -> None:
    if processes > 1:  # as torchrun says it
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {key: str(value) for key, value in told.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for settings in cases:
        for name, change in ways(settings, processes).items():
            distill(parse(settings | change | {"output": f"{settings['output']}/{name}"}))
            AcceleratorState._reset_state(reset_partial_state=True)


def main() -> int:
    in_double_precision()
    cases = json.load(sys.stdin)
    for name in {settings["backbone"] for settings in cases}:  # imported once, before the forks
        backbone_class(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for processes, rank in ((1, 0), (2, 0), (2, 1)):
        if not (child := os.fork()):
            try:
                work(cases, processes, rank, port)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


if __name__ == "__main__":
    sys.exit(main())
