"""Kernel Inception Distance (Binkowski et al. 2018), by torch-fidelity: unbiased, so small sets may be compared."""

import torch

from ...recipe.schema import Whole, setting
from . import Seen, Value
from .distribution import DistributionSettings, both


class Settings(DistributionSettings):
    subsets: Whole = setting(100, "how many random subsets are averaged", low=1, high=10_000)
    subset_size: Whole = setting(1000, "pictures in each", low=2, high=100_000)
    halves: Whole = setting(0, "random halves for the interval; 0: none", low=0, high=1000)


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    from torch_fidelity.metric_kid import kid_features_to_metric

    from ..intervals import of_halves

    least = settings.subset_size * (2 if settings.halves else 1)
    drawn, real = both(seen, settings, least)

    def kid(rows: torch.Tensor) -> tuple[float, float]:
        choices = {"kid_subsets": settings.subsets, "kid_subset_size": settings.subset_size, "verbose": False}
        found = kid_features_to_metric(rows, real, **choices)
        return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]

    value, spread = kid(drawn)
    interval = of_halves(value, lambda chosen: kid(drawn[torch.from_numpy(chosen)])[0], len(drawn), settings.halves)
    return {"kid": Value(value, len(drawn), interval, more={"reference_n": len(real), "deviation_of_subsets": spread})}
