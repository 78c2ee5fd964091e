"""CMMD (Jayasumana et al. 2024): 1000 times the squared MMD of unit CLIP embeddings, Gaussian kernel, sigma 10."""

import torch
from torch import Tensor

from ...recipe.schema import Name, Number, setting
from . import Seen, Value
from .distribution import DistributionSettings, both

PART = 2048


class Settings(DistributionSettings):
    network: Name = setting("vit_l_14_336", "what sees the pictures: a row of weights.yaml, or MODULE:CLASS")
    sigma: Number = setting(10.0, "width of the kernel", low=1e-6, high=1e6)
    scale: Number = setting(1000.0, "what the squared distance is multiplied by", low=1e-6, high=1e9)


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    drawn, real = (torch.nn.functional.normalize(features, dim=1) for features in both(seen, settings))
    gamma = 1 / (2 * settings.sigma**2)
    value = _mean(drawn, drawn, gamma) + _mean(real, real, gamma) - 2 * _mean(drawn, real, gamma)
    return {"cmmd": Value(settings.scale * value, len(drawn), more={"reference_n": len(real)})}


def _mean(x: Tensor, y: Tensor, gamma: float) -> float:
    """Of exp(-gamma |x_i - y_j|^2) over all i and j, the diagonal with them, as the authors do."""
    total = sum(float(torch.exp(-gamma * torch.cdist(part, y) ** 2).sum()) for part in x.split(PART))
    return total / (len(x) * len(y))
