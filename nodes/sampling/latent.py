"""Checks of a LATENT before any sampling starts."""

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from comfy.nested_tensor import NestedTensor

from ..quoting import as_written

REMEDY = "connect an Empty Latent Image, or a VAE Encode of a picture"
MOST_PICTURES = 1 << 16
DOWNSCALES = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def checked_latent(latent: object) -> dict:
    """A LATENT with samples and mask in dtypes that can be sampled.

    Raises:
        ValueError: it is none, or cannot be sampled by any model; one sentence that names the input and the remedy.
    """
    if not isinstance(latent, dict):
        what = "empty" if latent is None else f"no latent but of type {type(latent).__name__}"
        raise ValueError(f"The latent_image is {what}: {REMEDY}.")
    samples = latent.get("samples")
    streams = streams_of(samples)
    if not streams or not all(map(torch.is_tensor, streams)):
        raise ValueError(f"The latent_image is without samples: {REMEDY}.")
    for stream in streams:
        if stream.ndim < 4 - (stream is not streams[0]) or 0 in stream.shape:
            size = " x ".join(map(str, stream.shape))
            raise ValueError(
                f"The latent_image is of size {size}: connect an Empty Latent Image at least 16 pixels wide and high."
            )
    numbers = [_numbers("latent_image", stream) for stream in streams]
    checked = {**latent, "samples": type(samples)(numbers) if isinstance(samples, NestedTensor) else numbers[0]}
    if latent.get("noise_mask") is not None:
        checked["noise_mask"] = _checked_mask(latent["noise_mask"])
    if latent.get("batch_index") is not None:
        checked["batch_index"] = _checked_batch_index(latent["batch_index"], samples.shape[0])
    for name in DOWNSCALES:
        value = latent.get(name)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ValueError(f"The latent_image has {as_written(value)} as its {name}: {REMEDY}.")
    return checked


@contextmanager
def fitting(samples: torch.Tensor) -> Iterator[None]:
    """Raise ValueError, one sentence, where ComfyUI fails to bring an empty latent into the model's size."""
    try:
        yield
    except (RuntimeError, ValueError, ZeroDivisionError, OverflowError) as error:
        size = " x ".join(map(str, samples.shape))
        raise ValueError(f"The latent_image, of size {size}, does not fit this model: {REMEDY} of its kind.") from error


def streams_of(samples: object) -> list:
    """The parts of what is sampled: picture and sound where ComfyUI keeps them together, else the samples alone."""
    return list(samples.unbind()) if isinstance(samples, NestedTensor) else [samples]


def pixels_of(model, latent: dict | None) -> int | None:
    """How many pixels a picture of a LATENT has; None if there is none, or it holds no picture."""
    samples = streams_of(latent.get("samples"))[0] if isinstance(latent, dict) else None
    if not torch.is_tensor(samples) or samples.ndim < 4:
        return None
    latent_format = model.get_model_object("latent_format")
    # Older cores do not tell; there the only formats of 128 channels whose lists depend on the size are FLUX.2's.
    side = 16 if latent_format.latent_channels == 128 else 8
    side = getattr(latent_format, "spacial_downscale_ratio", side)
    if isinstance(latent.get("downscale_ratio_spacial"), (int, float)):
        side = latent["downscale_ratio_spacial"]
    return round(samples.shape[-1] * samples.shape[-2] * side**2)


def check_size(samples: torch.Tensor, latent_format) -> None:
    """Raise ValueError, one sentence, unless samples fit the model's format.

    Args:
        samples: [batch, channels, (frames,) height, width].
        latent_format: ComfyUI's, of the model.
    """
    dimensions, channels = latent_format.latent_dimensions, latent_format.latent_channels
    if samples.ndim != 2 + dimensions:
        size = " x ".join(map(str, samples.shape))
        kind = "pictures" if dimensions == 2 else "videos" if dimensions == 3 else "sounds"
        raise ValueError(
            f"The latent_image is of size {size}, but this model makes {kind}: {REMEDY} by this model's VAE."
        )
    if samples.shape[1] != channels:
        raise ValueError(
            f"The latent_image has {samples.shape[1]} channels, but this model works with {channels}: "
            f"encode the picture with the VAE that belongs to the model."
        )


def _numbers(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """It as dense floating-point numbers of 16 bits or more, as they are where they are such."""
    if tensor.is_meta or tensor.is_complex():
        raise ValueError(f"The {what} holds no real numbers: {REMEDY}.")
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"The {what} holds NaN or infinite numbers: make it again, with the VAE in fp32 if it stays so."
        )
    return tensor


def _checked_mask(mask: object) -> torch.Tensor:
    if not torch.is_tensor(mask) or mask.ndim < 2 or 0 in mask.shape:
        kind = " x ".join(map(str, mask.shape)) if torch.is_tensor(mask) else type(mask).__name__
        raise ValueError(f"The noise mask of latent_image is no picture ({kind}): use Set Latent Noise Mask.")
    return _numbers("noise mask of latent_image", mask)


def _checked_batch_index(index: object, batch: int) -> list[int]:
    try:
        numbers = [operator.index(number) for number in index]
    except TypeError:
        numbers = []
    # ComfyUI draws the noise of every picture up to the last one, and makes a batch of one picture as many as these.
    if not numbers or len(numbers) != batch > 1 or not all(0 <= number < MOST_PICTURES for number in numbers):
        raise ValueError(
            f"The batch_index of latent_image is {as_written(index)}, which does not number its {batch} pictures: "
            f"use Latent From Batch to take some of a batch."
        )
    return numbers
