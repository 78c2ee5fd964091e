"""Maps over the picture, for models that cut it into patches."""

from math import prod

import torch


def patches(x: torch.Tensor, patch: tuple[int, ...]) -> int:
    """How many image tokens latents are, in a model that pads them to whole patches."""
    return prod(-(-length // step) for length, step in zip(x.shape[-len(patch) :], patch, strict=True))


def over_patches(map: torch.Tensor, x: torch.Tensor, patch: tuple[int, ...]) -> torch.Tensor:
    """[batch, image tokens, 1]: the value of a map at every patch, in the order the model flattens them.

    Args:
        map: [batch, 1, (frames,) height, width], or [batch, 1, time].
        x: latents [batch, channels, ...] as the model receives them.
        patch: the size of a patch in latents: (frames, height, width), (height, width) or (time,).
    """
    if x.ndim < len(patch) + 2:  # a picture in a model of videos
        map, x = map.unsqueeze(2), x.unsqueeze(2)
    if map.shape[2:] != x.shape[2:]:  # a context window of a video, which older cores cut from the latents alone
        map = torch.nn.functional.interpolate(map, size=x.shape[2:], mode="nearest")
    missing = [-length % step for length, step in zip(x.shape[2:], patch, strict=True)]
    ends = [amount for length in reversed(missing) for amount in (0, length)]  # models pad sizes that do not divide
    map = torch.nn.functional.pad(map, ends, mode="replicate")
    size = [length // step for length, step in zip(map.shape[2:], patch, strict=True)]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}
    return torch.nn.functional.interpolate(map, size=size, mode=mode[len(size)]).flatten(2).transpose(1, 2)
