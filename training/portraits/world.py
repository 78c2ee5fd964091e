"""What a portrait can show, and the captions that name some of it.

The world is the product of nine attributes (20,480 portraits). Captions name some of them and leave the others open;
position and size are named by none. Every caption allows a product of values, which is what makes the world's denoiser
fall apart into one of each attribute (``latent_code.py``).
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

PEOPLE, PETS = ("man", "woman"), ("cat", "dog")
WITHOUT, WITH = "without", "with"
ATTRIBUTES = {
    "who": PEOPLE + PETS,
    "hair": ("black", "brown", "blond", "red"),  # fur of pets
    "glasses": (WITHOUT, WITH),
    "hat": (WITHOUT, WITH),
    "detail": (WITHOUT, WITH),  # a man's beard, a woman's earrings, a pet's whiskers
    "mood": ("smiling", "sad"),
    "background": ("blue", "green", "yellow", "pink"),
    "position": ("centre", "left", "right", "high", "low"),
    "size": ("small", "large"),
}
DETAILS = {"beard": ("man",), "earrings": ("woman",), "whiskers": PETS}  # whose detail goes by which name
GROUPS = {"person": PEOPLE, "pet": PETS, "portrait": PEOPLE + PETS}
HAIR = {"hair": PEOPLE, "fur": PETS}  # whose hair goes by which name
THINGS = {"glasses": "glasses", "hat": "a hat", "beard": "a beard", "earrings": "earrings", "whiskers": "whiskers"}

Item = dict[str, str]  # one portrait: a value of every attribute
Allowed = dict[str, tuple[str, ...]]  # what a caption leaves possible; attributes that it does not touch are absent


def draw_items(random: np.random.RandomState, count: int) -> list[Item]:
    """Portraits, every value as likely as every other."""
    return [{name: values[random.randint(len(values))] for name, values in ATTRIBUTES.items()} for _ in range(count)]


def allowed(caption: str) -> Allowed:
    """What ``caption`` leaves possible. Words that the world does not know are passed over.

    "no" before a thing asks for its absence; "or" between two values allows both.
    """
    found: dict[str, set[str]] = {}
    words = caption.split()

    def allow(name: str, *values: str) -> None:
        found.setdefault(name, set()).update(values)

    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        after = words[index + 1 :]
        if word in GROUPS:
            allow("who", *GROUPS[word])
        for name in ("who", "mood"):
            if word in ATTRIBUTES[name]:
                allow(name, word)
        if word in ("glasses", "hat"):
            allow(word, WITHOUT if before == "no" else WITH)
        if word in DETAILS:
            allow("detail", WITHOUT if before == "no" else WITH)
        # A colour belongs to the next noun that can have one: "black or brown hair".
        noun = next((other for other in after if other in HAIR or other == "background"), None)
        if noun in HAIR and word in ATTRIBUTES["hair"]:
            allow("hair", word)
        if noun == "background" and word in ATTRIBUTES["background"]:
            allow("background", word)
    if "who" not in found:  # a beard alone speaks of a man
        for owners in [*(DETAILS.get(word) for word in words), *(HAIR.get(word) for word in words)]:
            if owners:
                found["who"] = set(owners) & found.get("who", set(owners))
    return {name: tuple(value for value in ATTRIBUTES[name] if value in values) for name, values in found.items()}


def fits(caption: str, item: Item) -> bool:
    """True if nothing that the caption says is wrong of the portrait."""
    return all(item[name] in values for name, values in allowed(caption).items())


@dataclass(frozen=True)
class CaptionShares:
    """How often a drawn caption is of each kind, and names each attribute."""

    empty: float = 0.08
    bare: float = 0.2  # one thing and nothing else: "glasses", "red hair"
    named: float = 0.5  # of the rest: "a man"; else "a person", "a portrait" or "a man or cat"
    group: float = 0.3
    portrait: float = 0.1
    attribute: float = 0.3  # mood, hair, background, each
    thing: float = 0.3  # a thing that is there
    no_thing: float = 0.15  # a thing that is not
    choice: float = 0.12  # of the colours named: "black or red hair"


SHARES = CaptionShares()


def _or(random: np.random.RandomState, name: str, value: str, choice: float) -> str:
    """``value``, or with the probability ``choice`` a choice between it and another."""
    if random.rand() >= choice:
        return value
    pairs = [pair for pair in combinations(ATTRIBUTES[name], 2) if value in pair]
    return " or ".join(pairs[random.randint(len(pairs))])


def _detail(item: Item) -> str:
    return next(name for name, owners in DETAILS.items() if item["who"] in owners)


def _hair(item: Item) -> str:
    return next(name for name, owners in HAIR.items() if item["who"] in owners)


def _bare(random: np.random.RandomState, item: Item) -> str:
    """One thing of the portrait and nothing else, as negative prompts are written."""
    words = [
        item["who"],
        item["who"],
        f"{item['hair']} {_hair(item)}",
        item["mood"],
        f"{item['background']} background",
        *(thing for thing in ("glasses", "hat") if item[thing] == WITH),
        *([_detail(item)] if item["detail"] == WITH else []),
    ]
    return words[random.randint(len(words))]


def draw_caption(random: np.random.RandomState, item: Item, shares: CaptionShares = SHARES) -> str:
    """A caption that fits ``item``: empty, bare, or a sentence of at most 18 words."""
    kind = random.rand()
    if kind < shares.empty:
        return ""
    if kind < shares.empty + shares.bare:
        return _bare(random, item)
    who, kind = item["who"], random.rand()
    if kind < shares.named:
        noun = who
    elif kind < shares.named + shares.group:
        noun = "person" if who in PEOPLE else "pet"
    elif kind < shares.named + shares.group + shares.portrait:
        noun = "portrait"
    else:
        noun = _or(random, "who", who, 1.0)
    words = ["a", *([item["mood"]] if random.rand() < shares.attribute else []), noun]
    tail = []
    if noun != "portrait" and " or " not in noun and random.rand() < shares.attribute:
        tail.append(f"{_or(random, 'hair', item['hair'], shares.choice)} {_hair(item)}")
    things = ["glasses", "hat", *([_detail(item)] if noun in ("man", "woman", *PETS, "pet") else [])]
    for thing in things:
        there = item[thing if thing in ("glasses", "hat") else "detail"] == WITH
        drawn = random.rand()
        if there and drawn < shares.thing:
            tail.append(THINGS[thing])
        elif not there and drawn < shares.no_thing:
            tail.append(f"no {thing}")
    random.shuffle(tail)
    if tail:
        words += ["with", " and ".join(tail[:2])]
    if random.rand() < shares.attribute:
        words += ["on", "a", _or(random, "background", item["background"], shares.choice), "background"]
    return " ".join(words)
