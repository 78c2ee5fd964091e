"""Improved precision and recall (Kynkaanniemi et al. 2019), by torch-fidelity.

The paper states neither feature nor k; candidates are VGG16 with k 3, Inception with k 3 or 5. Which one reproduces the
rows of Table 1 for the public teacher is to be found out by running them (recipe table1).
"""

from ...recipe.schema import Whole, setting
from . import Seen, Value
from .distribution import DistributionSettings, both


class Settings(DistributionSettings):
    k: Whole = setting(3, "neighbours: a set reaches as far as each point's k-th neighbour", low=1, high=100)


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    """precision: the share of drawn pictures among the real ones; recall: of real ones among the drawn."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    from ..intervals import wilson

    drawn, real = both(seen, settings, settings.k + 1)
    choices = {"prc_neighborhood": settings.k, "prc_batch_size": 10_000, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(drawn, real, **choices)
    return {
        name: Value(found[name], len(drawn), wilson(found[name] * count, count), more={"reference_n": len(real)})
        for name, count in (("precision", len(drawn)), ("recall", len(real)))
    }
