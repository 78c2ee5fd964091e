"""Frechet Inception Distance (Heusel et al. 2017), by torch-fidelity. At equal n alone: its bias goes as 1/n."""

import torch

from ...recipe.schema import Whole, setting
from . import Seen, Value
from .distribution import DistributionSettings, both


class Settings(DistributionSettings):
    halves: Whole = setting(
        0, "random halves for the interval, each a whole FID (2048 wide: some 20 s); 0: no interval", low=0, high=1000
    )


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    from ..intervals import of_halves

    drawn, real = both(seen, settings)
    wanted = fid_features_to_statistics(real)

    def fid(rows: torch.Tensor) -> float:
        found = fid_statistics_to_metric(fid_features_to_statistics(rows), wanted, verbose=False)
        return max(0.0, found["frechet_inception_distance"])  # rounding alone makes it negative

    value = fid(drawn)
    interval = of_halves(value, lambda chosen: fid(drawn[torch.from_numpy(chosen)]), len(drawn), settings.halves)
    return {"fid": Value(value, len(drawn), interval, more={"reference_n": len(real), "width": drawn.shape[1]})}
