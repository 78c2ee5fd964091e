"""One use of NASA on a model."""

from dataclasses import dataclass

from .kept import Kept


@dataclass(frozen=True)
class Negative:
    """What a user asked for: the arguments of `payload.patch`, checked, and what is kept of the prompt.

    Args:
        blocks: the names of the blocks that are steered.
    """

    conditioning: list
    alpha: float
    start_percent: float
    end_percent: float
    blocks: frozenset[str]
    norm_limit: float
    rule: str
    adaptive: bool
    kept: Kept
