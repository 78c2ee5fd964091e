"""How different the pictures of one prompt are: 1 - cosine of their features, over all pairs within a prompt."""

import torch

from ...errors import UserError
from ...recipe.schema import Block, Name, setting
from ..intervals import of_mean
from . import Seen, Value


class Settings(Block):
    network: Name = setting("vit_b_32", "what sees the pictures: a row of weights.yaml, or MODULE:CLASS")
    sha256: Name | None = setting(None, "what the SHA-256 of the network's file begins with, instead of what is known")


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    """The mean over prompts, each the mean over its pairs; the interval is over prompts."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(seen.pictures.prompts):
        places.setdefault(prompt.prompt, []).append(place)
    several = [those for those in places.values() if len(those) > 1]
    if not several:
        raise UserError("Diversity needs two pictures or more of a prompt; set the recipe's `prompts.each`.")
    features = seen.features.of(seen.pictures, settings.network, settings.sha256).double()
    seen.used[settings.network] = seen.features.network(settings.network, settings.sha256).described
    unit = torch.nn.functional.normalize(features, dim=1)
    means = [_distance(unit[those]) for those in several]
    return {"diversity": Value(sum(means) / len(means), sum(map(len, several)), of_mean(means))}


def _distance(unit: torch.Tensor) -> float:
    """Mean of 1 - u_i . u_j over i < j, of unit vectors [n, width]."""
    n = len(unit)
    return 1 - float(unit.sum(0).square().sum() - n) / (n * (n - 1))
