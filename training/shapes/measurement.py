"""What is counted on the demo's pictures: captions followed, unwanted things gone (the paper's Table 7 in small)."""

from collections import Counter
from dataclasses import dataclass
from itertools import product

from .detector import Reading
from .world import ATTRIBUTES, COLORS, SHAPES, parse

# How strongly the demo's negative prompts steer; chosen on seeds that the demo does not use.
ALPHA = 1.3


@dataclass(frozen=True)
class Pair:
    """A prompt that leaves something open, and a negative prompt that names one way to fill it."""

    prompt: str
    negative: str


PAIRS = (
    Pair("a colored circle", "red"),
    Pair("a colored square", "green"),
    Pair("a colored triangle", "blue"),
    Pair("a colored cross", "yellow"),
    Pair("a red shape", "circle"),
    Pair("a green shape", "square"),
    Pair("a blue shape", "triangle"),
    Pair("a yellow shape", "cross"),
)
# A negative prompt that names what is not there: the picture should stay as it is.
IRRELEVANT = (
    Pair("a red circle", "blue"),
    Pair("a green square", "red"),
    Pair("a blue triangle", "green"),
    Pair("a yellow cross", "blue"),
    Pair("a red cross", "square"),
    Pair("a green circle", "cross"),
    Pair("a blue square", "circle"),
    Pair("a red triangle", "square"),
)


def matches(reading: Reading, caption: str) -> bool:
    """True if everything that ``caption`` names is what the picture shows."""
    named = parse(caption)
    return all(getattr(named, name) in (None, getattr(reading, name)) for name in ATTRIBUTES)


def kept(reading: Reading, prompt: str) -> bool:
    """True if what the prompt asked for is there, and is a shape of a colour at all."""
    return matches(reading, prompt) and reading.shape is not None and reading.color is not None


def absent(reading: Reading, negative: str) -> bool:
    """True if nothing that the negative prompt names is in the picture."""
    named = parse(negative)
    return not any(getattr(named, name) and getattr(named, name) == getattr(reading, name) for name in ATTRIBUTES)


def accuracy_captions(count: int = 500) -> list[str]:
    """Captions that name a colour and a shape, the 16 of them in turn."""
    named = [f"a {color} {shape}" for shape, color in product(SHAPES, COLORS)]
    return [named[index % len(named)] for index in range(count)]


def share_of_colors(readings: list[Reading]) -> dict[str, float]:
    """The share of each of the world's colours, 0 to 1; pictures without a clear colour count in none."""
    counts = Counter(reading.color for reading in readings)
    return {color: counts[color] / len(readings) for color in COLORS}
