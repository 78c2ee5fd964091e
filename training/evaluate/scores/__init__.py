"""One file a score: its `Settings`, and `score(seen, settings) -> {name: Value}`.

rows.yaml holds scores that are another one with other settings, such as HPSv2, which is `alignment` by one CLIP.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..features import Features
from ..pictures import Pictures


@dataclass(frozen=True)
class Value:
    """One number: of how many pictures, and its 95% interval where there is one. value None: it cannot be told.

    groups: the same for each group of the prompt set. more: whatever belongs beside it in result.json.
    """

    value: float | None
    n: int
    interval: tuple[float, float] | None = None
    groups: dict[str, "Value"] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a score may look at. variant(name): the pictures of another variant. reference(name): of a folder."""

    pictures: Pictures
    features: Features
    variant: Callable[[str], Pictures]
    reference: Callable[[str], Pictures]
    weights: Path
    used: dict[str, Any]  # what result.json tells of the networks and references that were used


def grouped(pictures: Pictures) -> dict[str, list[int]]:
    """{group: places}; pictures without groups are in none."""
    groups: dict[str, list[int]] = {}
    for place, prompt in enumerate(pictures.prompts):
        if prompt.group:
            groups.setdefault(prompt.group, []).append(place)
    return groups
