"""The loop that trains a teacher of either demo world: resumable, logged, with an average of the weights."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_file


@dataclass(frozen=True)
class LoopSettings:
    """What every teacher's training has; saved in the record beside the weights."""

    steps: int = 1800
    batch: int = 64
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warm_up: int = 100
    cool_down: float = 0.35  # the last share of the steps, over which the learning rate falls to 0
    ema_decay: float = 0.995
    bf16: bool = True
    seed: int = 0
    checkpoint_every: int = 100


class Lesson(Protocol):
    """What a teacher learns."""

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """The loss of one step, its batch drawn from the step's own seed."""

    def errors(self, network: nn.Module) -> dict:
        """How far the network is from the exact denoiser, for the log."""


def _learning_rate(settings: LoopSettings, step: int) -> float:
    """The factor on the learning rate: up, level, down to 0."""
    left = (settings.steps - step) / (settings.cool_down * settings.steps)
    return min(1.0, (step + 1) / settings.warm_up, left)


def train(folder: Path, settings: LoopSettings, lesson: Callable[[], Lesson], begin: Callable[[], nn.Module]):
    """Train the diffusers network that ``begin`` gives into the diffusers folder ``folder``.

    Goes on where an earlier run stopped, and loads what is finished. Writes ``folder/state.pt`` and
    ``folder/log.jsonl`` as it goes. Raises UserError if the state there belongs to other settings.
    """
    state_file = folder / "state.pt"  # gone once the network is saved
    torch.manual_seed(settings.seed)
    network = begin().train()
    if (folder / "config.json").exists() and not state_file.exists():
        return type(network).from_pretrained(folder).eval().requires_grad_(False)
    folder.mkdir(parents=True, exist_ok=True)
    lesson = lesson()
    average = {name: weight.detach().clone() for name, weight in network.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [weight for weight in network.parameters() if weight.requires_grad],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=0.0,
        fused=True,
    )
    first = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["settings"] != json.dumps(asdict(settings)):
            raise UserError(f"{state_file} belongs to other settings: remove the folder or take those settings back")
        first = state["step"]
        network.load_state_dict(state["network"])
        average = state["average"]
        optimizer.load_state_dict(state["optimizer"])
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc="teacher", mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _learning_rate(settings, step)
        loss = lesson.loss(network, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(settings.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.values()), list(network.state_dict().values()), 1 - decay)
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        done = step + 1
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            with open(folder / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": done, "loss": loss.item(), **lesson.errors(network)}) + "\n")
            state = {
                "settings": json.dumps(asdict(settings)),
                "step": done,
                "network": network.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
            }
            with atomic_file(state_file) as temporary:
                torch.save(state, temporary)
    network.load_state_dict(average)
    network.eval().requires_grad_(False).save_pretrained(folder)
    state_file.unlink()
    return network
