"""What a small picture shows, read from its pixels alone: no model, no caption, no list of the world's pictures.

The border tells the background, the pixels that differ most from it tell the colour, and the outline of what
differs, brought to one size and place, is compared with drawn outlines.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .world import BACKGROUNDS, COLORS, PIXELS, SHAPES, SIZES, Item, coverage, paint

OUTLINE = 16  # pixels of a side of the outline that is compared
LEAST_CONTRAST = 60  # RGB distance under which nothing stands before the background
LEAST_LIKENESS = 0.72  # intersection over union of the outlines
FARTHEST_COLOR = 95  # RGB distance from the nearest named colour


@dataclass(frozen=True)
class Reading:
    """What a picture shows; None where nothing is clear enough to be named."""

    shape: str | None
    color: str | None
    background: str | None
    size: str | None


def _nearest(rgb: np.ndarray, named: dict, farthest: float) -> str | None:
    distances = {name: float(np.linalg.norm(rgb - np.asarray(value))) for name, value in named.items()}
    name = min(distances, key=distances.get)
    return name if distances[name] <= farthest else None


def _outline(mask: np.ndarray) -> np.ndarray | None:
    """The part of a coverage mask [32, 32] that holds the shape, stretched to [16, 16]; None if it is too small."""
    rows, columns = np.flatnonzero(mask.max(1) > 0.5), np.flatnonzero(mask.max(0) > 0.5)
    if len(rows) < 5 or len(columns) < 5:
        return None
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    image = Image.fromarray((mask * 255).astype(np.uint8)).resize((OUTLINE, OUTLINE), Image.Resampling.BILINEAR, box)
    return np.asarray(image, dtype=np.float32) / 255


_DRAWN = {shape: _outline(coverage(shape, PIXELS / 2, PIXELS / 2, 11.0)) for shape in SHAPES}


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def _measured(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """RGB of the ground and of what stands before it, how much of it each pixel is [32, 32], and its outline."""
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)
    difference = np.linalg.norm(pixels - ground, axis=-1)
    color = np.median(pixels[difference >= np.quantile(difference, 0.95)], axis=0)
    contrast = color - ground
    if np.linalg.norm(contrast) < LEAST_CONTRAST:
        return ground, color, np.zeros((PIXELS, PIXELS), np.float32), None
    mask = np.clip((pixels - ground) @ contrast / (contrast @ contrast), 0, 1)
    return ground, color, mask, _outline(mask)


def read_one(picture: np.ndarray) -> Reading:
    """What one picture, uint8 [32, 32, 3], shows."""
    ground, color_value, mask, found = _measured(picture)
    background = _nearest(ground, BACKGROUNDS, 60)
    if np.linalg.norm(color_value - ground) < LEAST_CONTRAST:
        return Reading(None, None, background, None)
    color = _nearest(color_value, COLORS, FARTHEST_COLOR)
    if found is None:
        return Reading(None, color, background, None)
    likeness = {shape: _likeness(found, drawn) for shape, drawn in _DRAWN.items()}
    shape = max(likeness, key=likeness.get)
    height = int((mask.max(1) > 0.5).sum())
    size = min(SIZES, key=lambda name: abs(height - 1.85 * SIZES[name]))
    return Reading(shape if likeness[shape] >= LEAST_LIKENESS else None, color, background, size)


def features(pictures: np.ndarray) -> np.ndarray:
    """What is measured on each picture of uint8 [N, 32, 32, 3], float32 [N, 13], each number about 0 to 1.

    RGB of the ground and of the shape, likeness to the four outlines, height, and where the middle is.
    """
    rows = []
    for picture in pictures:
        ground, color, mask, found = _measured(picture)
        likeness = [0.0 if found is None else _likeness(found, drawn) for drawn in _DRAWN.values()]
        total = max(float(mask.sum()), 1e-6)
        middle = [float((mask.sum(axis) * np.arange(PIXELS)).sum()) / total for axis in (0, 1)]
        height = int((mask.max(1) > 0.5).sum())
        rows.append([*ground / 255, *color / 255, *likeness, height / PIXELS, *(place / PIXELS for place in middle)])
    return np.asarray(rows, dtype=np.float32)


def read(pictures: np.ndarray) -> list[Reading]:
    """What each picture of uint8 [N, 32, 32, 3] shows.

    Raises ValueError if the array is of another shape or type.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (PIXELS, PIXELS, 3):
        raise ValueError(f"the detector reads uint8 [N, {PIXELS}, {PIXELS}, 3], not {pictures.dtype} {pictures.shape}")
    return [read_one(picture) for picture in pictures]


def accuracy_on_drawn(count: int = 2000, seed: int = 0) -> float:
    """How often all four attributes are read rightly off pictures drawn at random.

    Positions, radii, colours and backgrounds vary continuously about the world's own, and the pixels carry
    noise, so that this is not a look-up of the world's 480 pictures.
    """
    random = np.random.RandomState(seed)
    right = 0
    for _ in range(count):
        shape, color, background, size = (
            list(names)[random.randint(len(names))] for names in (SHAPES, COLORS, BACKGROUNDS, SIZES)
        )
        item = Item(shape, color, background, size, tuple(random.uniform(-4, 4, 2)))
        picture = paint(
            item,
            radius=SIZES[size] + random.uniform(-0.8, 0.8),
            color=np.asarray(COLORS[color]) + random.uniform(-15, 15, 3),
            background=np.asarray(BACKGROUNDS[background]) + random.uniform(-10, 10),
        )
        noisy = (picture + random.normal(0, 5, picture.shape)).round().clip(0, 255).astype(np.uint8)
        right += read_one(noisy) == Reading(shape, color, background, size)
    return right / count
