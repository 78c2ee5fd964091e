"""Checks of a CONDITIONING before any sampling starts."""

import torch


def check_conditioning(name: str, conditioning: list, width: int | None, needs: tuple[str, ...] = ()) -> None:
    """Raise ValueError, one sentence that names the input and the remedy, unless every entry is usable.

    Args:
        name: the node's input, for the sentence.
        conditioning: ComfyUI's list of [embedding [batch, tokens, width], options].
        width: what the model reads; None to accept any.
        needs: the options that the model reads beside the embedding.
    """
    if not conditioning:
        raise ValueError(f"The {name} conditioning is empty: connect a CLIP Text Encode to it.")
    for embedding, options in conditioning:
        if not torch.is_tensor(embedding) or embedding.ndim != 3 or 0 in embedding.shape:
            raise ValueError(f"The {name} conditioning holds no text embedding: connect a CLIP Text Encode to it.")
        if width is not None and embedding.shape[-1] != width:
            raise ValueError(
                f"The {name} conditioning is {embedding.shape[-1]} wide, but this model reads text {width} wide: "
                f"encode it with the CLIP that belongs to the model."
            )
        if not torch.isfinite(embedding).all():
            raise ValueError(
                f"The {name} conditioning holds NaN or infinite numbers: encode it again, "
                f"and load the text encoder in fp32 if it stays so."
            )
        missing = [option for option in needs if options.get(option) is None]
        if missing:
            raise ValueError(
                f"The {name} conditioning lacks {' and '.join(missing)}, which this model reads: "
                f"encode it with the CLIP that belongs to the model."
            )
