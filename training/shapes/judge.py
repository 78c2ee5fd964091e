"""The demo world's detector as a judge and a feature of `evaluate`: training.shapes.judge:Detector in a recipe."""

from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from . import detector
from .measurement import kept
from .weights import sha256
from .world import ATTRIBUTES, PIXELS, parse


class Detector:
    """Reads pixels; undecided about a thing where the attribute that it names cannot be read."""

    def __init__(self):
        self.described = {"name": "the demo world's detector", "sha256": sha256(Path(detector.__file__))}

    def pictures(self, pixels: np.ndarray) -> torch.Tensor:
        """fp32 [n, 13]."""
        return torch.from_numpy(detector.features(_checked(pixels)))

    def present(self, pixels: np.ndarray, thing: str, contrast: str) -> list[bool | None]:
        """Whether anything that the words name is there; contrast is not needed."""
        named = parse(thing)
        asked = [name for name in ATTRIBUTES if getattr(named, name)]
        verdicts: list[bool | None] = []
        for reading in detector.read(_checked(pixels)):
            values = [(getattr(reading, name), getattr(named, name).split(" or ")) for name in asked]
            there = any(value in wanted for value, wanted in values)
            verdicts.append(there if there or all(value for value, _ in values) else None)
        return verdicts

    def shows(self, pixels: np.ndarray, prompt: str) -> list[bool | None]:
        """Whether all that the prompt names is there, and a shape of a color at all; what cannot be read is not."""
        return [kept(reading, prompt) for reading in detector.read(_checked(pixels))]


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[1:] != (PIXELS, PIXELS, 3):
        raise UserError(
            f"The demo world's detector reads pictures of {PIXELS} x {PIXELS} pixels, these have {pixels.shape[2]} x "
            f"{pixels.shape[1]}; set the recipe's `size: {PIXELS}`, or take another judge."
        )
    return pixels
