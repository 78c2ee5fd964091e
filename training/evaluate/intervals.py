"""95% intervals: of a share, of a mean, and of a statistic of a whole set."""

import math
from collections.abc import Callable, Sequence

import numpy

Z = 1.959964  # of a normal distribution, two-sided 95%


def wilson(right: float, n: int) -> tuple[float, float] | None:
    """Of a share right / n (Wilson 1927); right may be a fraction of a picture where it is n times a mean share."""
    if not n:
        return None
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """Of a mean, by its standard error; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, error = float(numpy.mean(values)), float(numpy.std(values, ddof=1)) / math.sqrt(len(values))
    return mean - Z * error, mean + Z * error


def of_halves(
    value: float, statistic: Callable[[numpy.ndarray], float], n: int, halves: int
) -> tuple[float, float] | None:
    """Of a statistic of n things: its deviation over random halves, each drawn without replacement.

    The variance of a mean over m of n things is s^2 (1/m - 1/n), which for m = n/2 is s^2 / n, that of the whole.
    Unlike a bootstrap it repeats no thing, which would bias FID and KID. statistic(chosen int64 [m]) -> their value.
    """
    if halves < 2 or n < 4:
        return None
    random = numpy.random.RandomState(0)
    spread = float(numpy.std([statistic(random.permutation(n)[: n // 2]) for _ in range(halves)], ddof=1))
    return value - Z * spread, value + Z * spread
