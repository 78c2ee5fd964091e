"""The two demo models and the worlds they draw: what to ask of each, and who reads its pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from training.portraits import detector as portraits_detector
from training.portraits import measurement as portraits
from training.portraits import weights as portraits_weights
from training.shapes import detector as shapes_detector
from training.shapes import measurement as shapes
from training.shapes import weights as shapes_weights


@dataclass(frozen=True)
class World:
    """preset: the row of the table for its model; latent: [channels, height, width]; measurement: PAIRS, IRRELEVANT,
    absent, kept, matches; read: pictures uint8 [n, height, width, 3] to readings."""

    preset: str
    latent: tuple[int, int, int]
    measurement: ModuleType
    read: Callable
    weights: ModuleType


def _portraits_reader() -> Callable:
    trained = portraits_weights.load_detector()
    return lambda pictures: portraits_detector.read(pictures, trained)


def shapes_world() -> World:
    """A UNet with cross-attention; its weights are committed."""
    return World("snoopi-shapes", (4, 4, 4), shapes, shapes_detector.read, shapes_weights)


def portraits_world() -> World:
    """A transformer with joint attention. Raises UserError before `make demo-model` has made it."""
    return World("snoopi-portraits", (16, 8, 8), portraits, _portraits_reader(), portraits_weights)


WORLDS = {"shapes": shapes_world, "portraits": portraits_world}
