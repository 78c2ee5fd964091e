"""The latent of each portrait, chosen rather than learned, and the exact denoiser of the world.

As in the shapes world (``shapes/latent_code.py``) every attribute has patterns of its own, all orthogonal, and its
values are the corners of a regular simplex. Here the world is a full product, so the posterior of a portrait given x_t
is the product of one posterior for each attribute, and E[x0 | x_t, caption] costs a few small matrices.
"""

import torch
from torch import Tensor

from ..shapes.latent_code import simplex
from .world import ATTRIBUTES, Allowed, Item

CHANNELS, GRID = 16, 8

# The share of each attribute in the squared length of 1,024, which makes the latents of unit variance.
SHARES = {
    "who": 200.0,
    "hair": 130.0,
    "glasses": 110.0,
    "hat": 110.0,
    "detail": 100.0,
    "mood": 90.0,
    "background": 130.0,
    "position": 80.0,
    "size": 74.0,
}


def _patterns() -> dict[str, Tensor]:
    """For each attribute its orthonormal patterns, float32 [values - 1, 1024]: smooth waves, each in one channel."""
    middles = (torch.arange(GRID) + 0.5) / GRID
    waves = torch.stack([torch.cos(torch.pi * middles * count) for count in range(4)])
    planes = torch.einsum("ay,bx->abyx", waves, waves).flatten(0, 1)
    planes = planes / planes.flatten(1).norm(dim=1)[:, None, None]
    places = iter(torch.randperm(len(planes) * CHANNELS, generator=torch.Generator().manual_seed(5)).tolist())
    patterns = {}
    for name, values in ATTRIBUTES.items():
        patterns[name] = torch.zeros(len(values) - 1, CHANNELS, GRID, GRID)
        for pattern in patterns[name]:
            plane, channel = divmod(next(places), CHANNELS)
            pattern[channel] = planes[plane]
    return {name: pattern.flatten(1) for name, pattern in patterns.items()}


PATTERNS = _patterns()
POINTS = {name: simplex(len(values)) * SHARES[name] ** 0.5 for name, values in ATTRIBUTES.items()}


def indices(items: list[Item]) -> dict[str, Tensor]:
    """For each attribute the index of its value, int64 [N]."""
    return {name: torch.tensor([values.index(item[name]) for item in items]) for name, values in ATTRIBUTES.items()}


def latents(values: dict[str, Tensor]) -> Tensor:
    """Portraits as the network sees them, float32 [N, 16, 8, 8]."""
    return sum(POINTS[name][chosen] @ PATTERNS[name] for name, chosen in values.items()).unflatten(
        1, (CHANNELS, GRID, GRID)
    )


def allowed_values(captions: list[Allowed]) -> dict[str, Tensor]:
    """For each attribute which values the captions leave possible, bool [N, values]."""
    return {
        name: torch.tensor([[value in caption.get(name, values) for value in values] for caption in captions])
        for name, values in ATTRIBUTES.items()
    }


def denoise(x: Tensor, t: Tensor, possible: dict[str, Tensor]) -> Tensor:
    """E[x0 | x_t = x, caption] for x_t = (1 - t) x0 + t eps, float32 [N, 16, 8, 8]; t is [N].

    The posterior of value i of an attribute is proportional to exp((alpha <x, L_i> - alpha^2 |L_i|^2 / 2) / sigma^2)
    over the values that are possible, alpha = 1 - t, sigma = t.
    """
    flat, alpha, sigma = x.flatten(1), (1 - t)[:, None], t[:, None]
    x0 = torch.zeros_like(flat)
    for name, points in POINTS.items():
        found = flat @ PATTERNS[name].T
        logits = (alpha * (found @ points.T) - alpha**2 * points.square().sum(1) / 2) / sigma**2
        x0 += logits.masked_fill(~possible[name], -torch.inf).softmax(1) @ points @ PATTERNS[name]
    return x0.view_as(x)


def read(x: Tensor) -> tuple[list[Item], Tensor]:
    """The nearest portrait of each latent, and the distance to it as a share of the attribute's length, [N, 9]."""
    nearest, distances = {}, []
    for name, points in POINTS.items():
        distance = torch.cdist(x.flatten(1) @ PATTERNS[name].T, points) / SHARES[name] ** 0.5
        distances.append(distance.min(1).values)
        nearest[name] = distance.argmin(1).tolist()
    items = [
        {name: ATTRIBUTES[name][index] for name, index in zip(nearest, row, strict=True)}
        for row in zip(*nearest.values(), strict=True)
    ]
    return items, torch.stack(distances, 1)


def distance(x: Tensor) -> Tensor:
    """How far each latent lies from the nearest portrait's, root of the mean square, float32 [N]."""
    return (x - latents(indices(read(x)[0]))).flatten(1).square().mean(1).sqrt()
