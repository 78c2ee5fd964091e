"""Where in the picture a negative acts: ComfyUI's areas, masks and strengths of conditioning."""

import comfy.sampler_helpers
import comfy.samplers
import torch

from ..quoting import as_written

PLACED = ("area", "mask", "mask_strength", "strength", "uuid")


def region(cond: dict, noise: torch.Tensor) -> torch.Tensor | None:
    """How strongly a negative acts at each latent pixel, by ComfyUI's own area and mask; None for 1 everywhere.

    An entry that ComfyUI calls `default` has no place of its own: `shares` gives it what the others leave.

    Args:
        cond: a processed cond of ComfyUI.
        noise: [batch, channels, (frames,) height, width], or [batch, channels, time] of sound.

    Returns:
        [batch, 1, ...] in the shape and dtype of the noise; [batch, 1, 1] where that is packed, as nothing has a place
        there.
    """
    if "default" in cond or not cond.keys() & {"area", "mask", "strength"}:
        return None
    placed = {key: cond[key] for key in PLACED if key in cond}
    part = comfy.samplers.get_area_and_mult(placed | {"model_conds": {}}, noise, None)
    strength = torch.zeros_like(noise[:, :1])
    view = strength
    if part.area is not None:
        dims = len(part.area) // 2
        for dim in range(dims):
            view = view.narrow(dim + 2, part.area[dims + dim], part.area[dim])
    if 0 in view.shape:
        raise IndexError("an area of no size")
    view.copy_(part.mult[:, :1])
    return strength[..., :1] if is_packed(noise) else strength


def is_packed(noise: torch.Tensor) -> bool:
    """Whether it is [batch, 1, numbers]: a video and its sound in one row, as ComfyUI packs them."""
    return noise.ndim == 3 and noise.shape[1] == 1


def check_has_no_place(name: str, conditioning: list) -> None:
    """Raise ValueError, one sentence, where a conditioning for packed latents has an area or a mask."""
    for _, options, *_ in conditioning:
        for what, key in (("A mask", "mask"), ("An area", "area")):
            if options.get(key) is not None:
                raise ValueError(
                    f"{what} of the {name} conditioning has no place in this video, which ComfyUI samples in one row "
                    f"of numbers with its sound: take it off, so that the {name} acts everywhere."
                )


def check_places(name: str, conditioning: list, noise: torch.Tensor) -> None:
    """Raise ValueError, one sentence, unless areas and masks of a checked conditioning are such as ComfyUI can use.

    Args:
        name: the node's input, for the sentence.
        noise: [batch, channels, (frames,) height, width], or [batch, channels, time] of sound.
    """
    size = "x".join(str(8 * length) for length in reversed(noise.shape[-2:]))
    size = f"about {size} pixels" if noise.ndim > 3 else f"{noise.shape[-1]} numbers"
    for cond in comfy.sampler_helpers.convert_cond(conditioning):
        conds = [cond]
        try:
            comfy.samplers.resolve_areas_and_cond_masks_multidim(conds, noise.shape[2:], noise.device)
            region({key: conds[0][key] for key in conds[0] if key != "default"} | {"strength": 1.0}, noise)
        except Exception as error:
            if "mask" in cond:
                mask, dtype = " x ".join(map(str, cond["mask"].shape)), str(cond["mask"].dtype).removeprefix("torch.")
                raise ValueError(
                    f"A mask of the {name} conditioning, of size {mask} in {dtype}, does not fit a batch of "
                    f"{noise.shape[0]} at {size}: give it one picture of float numbers, or one for each "
                    f"of the batch."
                ) from error
            raise ValueError(
                f"An area of the {name} conditioning, {as_written(cond.get('area'))}, lies outside of the picture of "
                f"{size} or has no size: move it inside, or make the picture larger."
            ) from error


def shares(regions: list[torch.Tensor | None], defaults: list[bool]) -> list[torch.Tensor | float]:
    """How much each of several negatives counts where: as its region says, and their mean where they overlap.

    Args:
        regions: of `region`, in one shape.
        defaults: which of them count where the others leave room, as in comfy.samplers.finalize_default_conds.
    """
    others = [strength for strength, default in zip(regions, defaults, strict=True) if not default]
    if all(strength is None for strength in regions):
        return [0.0 if default and others else 1 / len(others or regions) for default in defaults]
    like = next(strength for strength in regions if strength is not None)
    regions = [torch.ones_like(like) if strength is None else strength for strength in regions]
    if any(defaults):
        others = [strength for strength, default in zip(regions, defaults, strict=True) if not default]
        rest = (1 - sum(others)).clamp(min=0)
        regions = [rest if default else strength for strength, default in zip(regions, defaults, strict=True)]
    total = sum(regions).clamp(min=1)
    return [strength / total for strength in regions]
