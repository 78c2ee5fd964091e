"""The latent of each picture of the world, chosen rather than learned.

An autoencoder trained for pixels alone spends its latents on the background and hardly tells a circle from a
square, and diffusion then has to learn the text through that. Here every attribute gets patterns of its own on
the 4 x 4 grid, all orthogonal to each other, and the values of an attribute are the corners of a regular simplex:
every two colours are equally far apart, all pictures' latents are equally long, and no value is favoured when a
one-step model starts from noise alone. The autoencoder (``autoencoder.py``) is trained to read and write this code.
"""

import torch

from .world import BACKGROUNDS, COLORS, ITEMS, POSITIONS, SHAPES, SIZES

GRID, CHANNELS = 4, 4


def _patterns() -> dict[str, torch.Tensor]:
    """Orthonormal patterns [4, 4] over the grid."""
    line = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    stripes = torch.tensor([1.0, -1.0, 1.0, -1.0])
    centre = -torch.ones(GRID, GRID)
    centre[1:3, 1:3] = 3.0
    patterns = {
        "flat": torch.ones(GRID, GRID),
        "centre": centre,
        "across": line.expand(GRID, GRID),
        "down": line[:, None].expand(GRID, GRID),
        "quarters": line[:, None] * line,
        "checks": stripes[:, None] * stripes,
    }
    return {name: pattern / pattern.norm() for name, pattern in patterns.items()}


# attribute -> its values, the (pattern, channel) pairs that carry it, its share of the 64 of squared length
CARRIERS = {
    "color": (tuple(COLORS), [("flat", 0), ("flat", 1), ("flat", 2)], 18.0),
    "size": (tuple(SIZES), [("flat", 3)], 8.0),
    "shape": (SHAPES, [("centre", 0), ("centre", 1), ("centre", 2)], 18.0),
    "background": (tuple(BACKGROUNDS), [("checks", 0), ("checks", 1)], 12.0),
    "position": (POSITIONS, [("across", 0), ("down", 1), ("across", 2), ("down", 3)], 8.0),
}


def simplex(corners: int) -> torch.Tensor:
    """The corners of a regular simplex about 0, float32 [corners, corners - 1], each of length 1."""
    # Helmert's rows span the space orthogonal to (1, ..., 1).
    rows = torch.zeros(corners - 1, corners)
    for row in range(1, corners):
        rows[row - 1, :row] = 1.0
        rows[row - 1, row] = -float(row)
    corners_by_row = rows / rows.norm(dim=1, keepdim=True)
    points = corners_by_row.T
    return points / points.norm(dim=1, keepdim=True)


def latents() -> torch.Tensor:
    """The latents of all pictures as the UNet sees them, float32 [480, 4, 4, 4] in the order of ``ITEMS``."""
    patterns = _patterns()
    latents = torch.zeros(len(ITEMS), CHANNELS, GRID, GRID)
    for attribute, (values, carriers, share) in CARRIERS.items():
        points = simplex(len(values)) * share**0.5
        chosen = points[[values.index(getattr(item, attribute)) for item in ITEMS]]
        for coordinate, (pattern, channel) in zip(chosen.T, carriers, strict=True):
            latents[:, channel] += coordinate[:, None, None] * patterns[pattern]
    return latents
