"""Which strengths a sweep shows."""

import math

from ..guidance.rules import LARGEST_ALPHA

MOST = 30


def refusal(alpha_from: float | None, alpha_to: float | None, count: int | None) -> str | None:
    """What is wrong with a sweep, in one sentence that names the input and the remedy; None if it can be run.

    Args:
        alpha_from, alpha_to, count: as `alphas`; None for one that is not known yet.
    """
    for name, alpha in (("alpha_from", alpha_from), ("alpha_to", alpha_to)):
        if alpha is not None and not 0 <= alpha <= LARGEST_ALPHA:  # NaN too
            return f"{name} is {alpha:g}: give a number from 0 to {LARGEST_ALPHA:g}."
    if count is not None and count < 1:
        return f"count is {count}, so there is nothing to show: give a number from 1 to {MOST}."
    if count is not None and count > MOST:
        return f"count is {count}: give a number from 1 to {MOST}; to look closer, set alpha_from and alpha_to nearer."
    if None not in (alpha_from, alpha_to, count) and count > 1 and math.isclose(alpha_from, alpha_to, abs_tol=1e-6):
        return f"alpha_from and alpha_to are both {alpha_from:g}: set them apart, or set count to 1 for one picture."
    return None


def alphas(alpha_from: float, alpha_to: float, count: int) -> list[float]:
    """`count` strengths at even distances, both ends among them; of one, the first.

    Raises:
        ValueError: with the sentence of `refusal`.
    """
    if sentence := refusal(alpha_from, alpha_to, count):
        raise ValueError(sentence)
    step = (alpha_to - alpha_from) / max(count - 1, 1)
    return [alpha_from + step * number for number in range(count)]
