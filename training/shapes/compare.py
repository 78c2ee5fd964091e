"""Students of the demo world side by side: `python -m training.shapes compare MODEL ...`."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..evaluate.sample import load_model
from ..recipe.shipped import DEMO_FOLDER
from .make import PICTURES, accuracy
from .measurement import accuracy_captions
from .sampling import by_student
from .world import ITEMS, paint


def distance(pictures: NDArray[np.uint8]) -> float:
    """From the nearest picture of the world, the mean over pictures uint8 [n, 32, 32, 3]; root mean square of the
    pixels, 0 (it is one of them) to 1 (black for white)."""
    world = np.stack([paint(item) for item in ITEMS])
    drawn, known = (torch.from_numpy(pixels).flatten(1) / 255 for pixels in (pictures, world))
    return (torch.cdist(drawn, known).min(1).values.mean() / known.shape[1] ** 0.5).item()


def compare(models: Sequence[str], teacher: str | None = None, count: int = PICTURES) -> str:
    """A table of runs and exported files: the steps of each, the share of `count` pictures that show the named color
    and shape, and how far they are from the nearest picture of the world.

    teacher: of an exported file; by default the demo's. Raises UserError.
    """
    torch.set_flush_denormal(True)
    captions = accuracy_captions(count)
    rows = [("model", "timesteps", "accuracy", "distance")]
    for model in models:
        other_parts = teacher or (f"{DEMO_FOLDER}/teacher" if model.endswith(".safetensors") else None)
        backbone, start = load_model(model, other_parts)
        latents = by_student(backbone, backbone.network, start, captions)
        right, far = accuracy(backbone, latents, captions), distance(backbone.decode(latents))
        rows.append((model, ", ".join(map(str, start.timesteps)), f"{right:.1%}", f"{far:.4f}"))
    return "\n".join(f"{name:40} {steps:20} {right:>8} {far:>8}" for name, steps, right, far in rows)
