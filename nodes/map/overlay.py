"""Lays maps over pictures."""

import torch

#: From little to much: black, violet, red, orange, pale yellow.
COLORS = ((0.0, 0.0, 0.02), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.64))
SHOWN = 0.6  # how much of the colour lies over the picture


def together(maps: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean over blocks of any size and unit: each counts alike, in the size of the largest.

    Args:
        maps: [batch, (frames,) height, width], not below 0.
    """
    size = max((map.shape[1:] for map in maps.values()), key=lambda shape: shape.numel())
    equal = [_resized(map, size) / _mean(map).clamp(min=1e-12) for map in maps.values()]
    return torch.stack(equal).mean(dim=0)


def as_mask(map: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """A map in the size of the pictures: MASK [batch, height, width], 0 where a picture's is least and 1 where most.

    Args:
        map: [batch, height, width], or [1 or batch, frames, height, width] for pictures that are frames.
        image: IMAGE [batch, height, width, 3].
    """
    count, height, width, _ = image.shape
    if map.ndim == 4:
        frames = max(count // len(map), 1)
        map = _resized(map, (frames, height, width)).flatten(0, 1)
    map = _resized(map, (height, width))[:count]
    least, most = map.amin(dim=(1, 2), keepdim=True), map.amax(dim=(1, 2), keepdim=True)
    return (map - least) / (most - least).clamp(min=1e-12)


def overlay(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """IMAGE: the pictures in grey under the colours of the mask."""
    colors = torch.tensor(COLORS)
    place = mask.clamp(0, 1) * (len(COLORS) - 1)
    below = place.long().clamp(max=len(COLORS) - 2)
    heat = torch.lerp(colors[below], colors[below + 1], (place - below).unsqueeze(-1))
    grey = image[..., :3].mean(dim=-1, keepdim=True).expand(*image.shape[:-1], 3)
    return torch.lerp(grey, heat, SHOWN)


def _resized(map, size):
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return torch.nn.functional.interpolate(map.unsqueeze(1), size=tuple(size), mode=mode).squeeze(1)


def _mean(map):
    return map.mean(dim=tuple(range(1, map.ndim)), keepdim=True)
