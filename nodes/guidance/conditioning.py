"""Checks of a CONDITIONING before any sampling starts."""

import math

import comfy.model_management
import torch

from ..quoting import as_written, quoted

NUMBERS = ("start_percent", "end_percent", "clip_start_percent", "clip_end_percent", "strength", "mask_strength")
STRENGTHS = ("strength", "mask_strength")

#: What ComfyUI raises over a conditioning that it cannot read; but running out of memory, a RuntimeError, is none.
UNREADABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def check_conditioning(
    name: str, conditioning: list, width: int | tuple[int, ...] | None, needs: tuple[str, ...] = ()
) -> None:
    """Raise ValueError, one sentence that names the input and the remedy, unless every entry is usable.

    Args:
        name: the node's input, for the sentence.
        conditioning: ComfyUI's list of [embedding [batch, tokens, width], options].
        width: what the model reads, or the several that it does; None to accept any.
        needs: the options that the model reads beside the embedding.
    """
    if conditioning is None or (isinstance(conditioning, (list, tuple)) and not conditioning):
        raise ValueError(f"The {name} conditioning is empty: connect a CLIP Text Encode to it.")
    if not isinstance(conditioning, (list, tuple)) or not all(map(_is_pair, conditioning)):
        raise ValueError(
            f"The {name} conditioning is no list of pairs, each of a text embedding and its options: "
            f"connect a CLIP Text Encode to it."
        )
    for embedding, options, *_ in conditioning:
        if not torch.is_tensor(embedding) or embedding.is_meta or embedding.ndim != 3 or 0 in embedding.shape:
            raise ValueError(f"The {name} conditioning holds no text embedding: connect a CLIP Text Encode to it.")
        widths = width if isinstance(width, tuple) else (width,)
        if width is not None and embedding.shape[-1] not in widths:
            raise ValueError(
                f"The {name} conditioning is {embedding.shape[-1]} wide, but this model reads text "
                f"{' or '.join(map(str, widths))} wide: encode it with the CLIP that belongs to the model."
            )
        for tensor in (embedding, options.get("pooled_output")):
            if torch.is_tensor(tensor) and not is_finite(tensor):
                raise ValueError(
                    f"The {name} conditioning holds NaN or infinite numbers: encode it again, "
                    f"and load the text encoder in fp32 if it stays so."
                )
        missing = [option for option in needs if options.get(option) is None]
        if missing:
            raise _lacks(name, " and ".join(missing))
        _check_options(name, options)


def _is_pair(entry: object) -> bool:
    """As ComfyUI takes it, which reads no more than the first two."""
    return isinstance(entry, (list, tuple)) and len(entry) >= 2 and isinstance(entry[1], dict)


def _check_options(name: str, options: dict) -> None:
    for option in NUMBERS:
        if option in options and not _is_number(options[option], finite=option in STRENGTHS):
            raise ValueError(
                f"The {name} conditioning has {as_written(options[option])} as its {option}: give it a number."
            )
    mask = options.get("mask", torch.ones(1, 1))
    if not torch.is_tensor(mask) or mask.layout != torch.strided or mask.ndim < 2 or 0 in mask.shape:
        kind = " x ".join(map(str, mask.shape)) if torch.is_tensor(mask) else type(mask).__name__
        raise ValueError(f"A mask of the {name} conditioning is no picture ({kind}): connect another mask.")
    if not is_finite(mask):
        raise ValueError(f"A mask of the {name} conditioning holds NaN or infinite numbers: make it again.")


def _is_number(value: object, finite: bool) -> bool:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return math.isfinite(number) if finite else not math.isnan(number)


def cannot_be_read(name: str, error: Exception) -> ValueError:
    """The error to raise where ComfyUI raised one of UNREADABLE when it prepared a conditioning for a model."""
    if isinstance(error, comfy.model_management.OOM_EXCEPTION):
        return error
    if isinstance(error, KeyError) and error.args and str(error.args[0]).isidentifier():
        return _lacks(name, quoted(error.args[0]))
    return ValueError(
        f"The {name} conditioning cannot be read by this model ({type(error).__name__}: {as_written(str(error))}): "
        f"encode it with the CLIP that belongs to the model, and look at the nodes that changed it since."
    )


def _lacks(name: str, options: str) -> ValueError:
    return ValueError(
        f"The {name} conditioning lacks {options}, which this model reads: encode it with the CLIP that belongs to the "
        f"model."
    )


def dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Dense and in a dtype that can be computed with, which fp8 is not."""
    tensor = dense(tensor)
    return tensor.float() if tensor.dtype.itemsize == 1 or tensor.dtype == torch.float64 else tensor


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are, in fp32 too."""
    return bool(torch.isfinite(plain(tensor)).all())


def is_zeroed(entry: list) -> bool:
    """Whether an entry of a CONDITIONING holds a text of zeros, as ConditioningZeroOut makes it."""
    is_text = _is_pair(entry) and torch.is_tensor(entry[0]) and not entry[0].is_meta
    return is_text and not torch.count_nonzero(plain(entry[0]))
