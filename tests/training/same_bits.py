"""Whether two runs are one to the last bit, and a run that is stopped at each of its first steps and goes on."""

from pathlib import Path

import pytest
import torch

from training.distill import distill
from training.recipe.config import parse
from training.run.checkpoint import Checkpoint, load_newest


def same_bits(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, dict):
            same_bits(value, second[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


def same_checkpoints(first: Checkpoint, second: Checkpoint) -> None:
    same_bits(first.weights, second.weights)
    same_bits(first.optimizers, second.optimizers)


def goes_on_to_the_same_bits(settings: dict, output: Path) -> dict:
    """The run of these settings against the same in `output`, stopped twice; gives the settings of the second."""
    distill(parse(settings))
    other = settings | {"output": str(output)}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(parse(other), resume=(output / "config.yaml").exists(), stop=lambda: True)
    distill(parse(other), resume=True)
    same_checkpoints(load_newest(Path(settings["output"])), load_newest(output))
    return other
