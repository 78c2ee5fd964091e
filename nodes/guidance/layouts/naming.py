"""Names of blocks by their numbers."""

from collections.abc import Iterable

import torch


def numbered(blocks: Iterable[torch.nn.Module], kind: str = "") -> dict[str, list[torch.nn.Module]]:
    """0, 1, 2, ..., after the name of their kind."""
    return {f"{kind}{number}": [block] for number, block in enumerate(blocks)}


def double_and_single(double: Iterable[torch.nn.Module], single: Iterable[torch.nn.Module]) -> dict[str, list]:
    """Blocks of two streams, double0, double1, ..., then of one, single0, single1, ..."""
    return numbered(double, "double") | numbered(single, "single")
