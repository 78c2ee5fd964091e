"""What is counted on portraits: captions followed, unwanted things gone, and the harm of a negative that names nothing
in the picture."""

from collections import Counter

from ..shapes.measurement import Pair
from .detector import READ, Reading
from .world import ATTRIBUTES, PEOPLE, PETS, allowed

# A prompt that leaves something open, and a negative prompt that names one way to fill it.
PAIRS = (
    Pair("a person", "man"),
    Pair("a person", "woman"),
    Pair("a pet", "cat"),
    Pair("a pet", "dog"),
    Pair("a woman", "glasses"),
    Pair("a man", "hat"),
    Pair("a dog", "sad"),
    Pair("a cat", "blue background"),
)
# A negative prompt that names what is not there: the picture should stay as it is.
IRRELEVANT = (
    Pair("a woman", "cat"),
    Pair("a man with a hat", "dog"),
    Pair("a cat with glasses", "woman"),
    Pair("a dog on a pink background", "green background"),
    Pair("a woman with red hair", "black hair"),
    Pair("a sad man", "smiling"),
    Pair("a man with a beard", "earrings"),
    Pair("a smiling cat", "man"),
)
OPEN = {"a person": PEOPLE, "a pet": PETS}  # prompts that leave the kind open


def matches(reading: Reading, caption: str) -> bool:
    """True if everything that ``caption`` names is clearly what the picture shows."""
    return all(reading[name] in values for name, values in allowed(caption).items())


def kept(reading: Reading, prompt: str) -> bool:
    """True if what the prompt asked for is there, and is clearly someone at all."""
    return reading["who"] is not None and matches(reading, prompt)


def absent(reading: Reading, negative: str) -> bool:
    """True if the picture clearly shows something else than what the negative prompt names."""
    return any(reading[name] not in (None, *values) for name, values in allowed(negative).items())


def accuracy_captions(count: int = 500) -> list[str]:
    """Captions that name a kind and one or two things of it, 56 of them in turn."""
    things = [
        "with glasses",
        "with a hat",
        "with glasses and a hat",
        *(f"on a {color} background" for color in ATTRIBUTES["background"]),
    ]
    named = [f"a {who} {thing}" for thing in things for who in ATTRIBUTES["who"]]
    named += [f"a {mood} {who}" for mood in ATTRIBUTES["mood"] for who in ATTRIBUTES["who"]]
    for color in ATTRIBUTES["hair"]:
        named += [f"a {who} with {color} {'hair' if who in PEOPLE else 'fur'}" for who in ATTRIBUTES["who"]]
    named += ["a man with a beard", "a woman with earrings", "a cat with whiskers", "a dog with whiskers"]
    return [named[index % len(named)] for index in range(count)]


def shares(readings: list[Reading], name: str) -> dict[str, float]:
    """The share of each value of an attribute, 0 to 1; pictures without a clear one count in none."""
    counts = Counter(reading[name] for reading in readings)
    return {value: counts[value] / len(readings) for value in ATTRIBUTES[name]}


def right(readings: list[Reading], truths: list[dict]) -> float:
    """The share of all attributes of all pictures that were read as they are, 0 to 1."""
    hits = [reading[name] == truth[name] for reading, truth in zip(readings, truths, strict=True) for name in READ]
    return sum(hits) / len(hits)
