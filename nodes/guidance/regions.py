"""Where in the picture a negative acts: ComfyUI's areas, masks and strengths of conditioning."""

import comfy.samplers
import torch

PLACED = ("area", "mask", "mask_strength", "strength", "uuid")


def region(cond: dict, noise: torch.Tensor) -> torch.Tensor | None:
    """How strongly a negative acts at each latent pixel, by ComfyUI's own area and mask; None for 1 everywhere.

    Args:
        cond: a processed cond of ComfyUI.
        noise: [batch, channels, (frames,) height, width].

    Returns:
        [batch, 1, (frames,) height, width] in the dtype of the noise.
    """
    if not cond.keys() & {"area", "mask", "strength"}:
        return None
    placed = {key: cond[key] for key in PLACED if key in cond}
    part = comfy.samplers.get_area_and_mult(placed | {"model_conds": {}}, noise, None)
    strength = torch.zeros_like(noise[:, :1])
    view = strength
    if part.area is not None:
        dims = len(part.area) // 2
        for dim in range(dims):
            view = view.narrow(dim + 2, part.area[dims + dim], part.area[dim])
    view.copy_(part.mult[:, :1])
    return strength


def shares(regions: list[torch.Tensor | None]) -> list[torch.Tensor | float]:
    """How much each of several negatives counts where: as its region says, and their mean where they overlap.

    Args:
        regions: of `region`, in one shape.
    """
    if all(strength is None for strength in regions):
        return [1 / len(regions)] * len(regions)
    like = next(strength for strength in regions if strength is not None)
    regions = [torch.ones_like(like) if strength is None else strength for strength in regions]
    total = sum(regions).clamp(min=1)
    return [strength / total for strength in regions]
