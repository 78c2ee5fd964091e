"""A negative prompt without its padding, the tokens that fill it up to the length that its text encoder gives."""

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from .guidance.conditioning import dense, plain
from .guidance.layouts import as_known, find_layout, needed, uncompiled
from .map.word import alike, encoded, numbers_behind
from .upstream import texts_before

#: What a model may read beside the embedding that is as long whatever the text is.
NO_TEXT = {"pooled_output", "attention_mask"}
KEEP = "set padding to kept"


def without_padding(node: type[io.ComfyNode], model: ModelPatcher, negative: list, clip: CLIP | None) -> list:
    """The entries of a node's input `negative`, each without the tokens after its words, of which the first stays.

    Which those are an attention mask tells, where the text encoder gives one, or else the text, encoded again.

    Raises:
        ValueError: it cannot be told; with the remedy.
    """
    network = uncompiled(model.get_model_object("diffusion_model"))
    with as_known(network):
        layout = find_layout(network)
        needs = set(needed(layout, network)) if layout else set()
    if layout is None or "attention_mask" in needs:  # not to be steered; or without its padding anyway
        return negative
    if needs - NO_TEXT:
        raise ValueError(f"The padding of a negative of several texts, as this model reads it, cannot be told: {KEEP}.")
    texts = texts_before(node, "negative")
    return [_words(entry, texts, clip) if _is_text(entry) else entry for entry in negative]


def _is_text(entry: object) -> bool:
    """What is none is told of by the patch."""
    is_pair = isinstance(entry, (list, tuple)) and len(entry) > 1 and isinstance(entry[1], dict)
    return is_pair and torch.is_tensor(entry[0]) and entry[0].ndim == 3 and not entry[0].is_meta


def _words(entry, texts, clip):
    embedding, options = dense(entry[0]), entry[1]
    mask = options.get("attention_mask")
    if torch.is_tensor(mask) and mask.ndim and mask.shape[-1] == embedding.shape[1] and mask.any():
        counts = mask.reshape(-1, mask.shape[-1]).bool().any(dim=0)
        return [embedding[:, counts], {**options, "attention_mask": mask[..., counts]}]
    if clip is None:
        raise ValueError(
            f"The padding of the negative cannot be told, as its text encoder gives no mask: connect to clip what its "
            f"CLIP Text Encode has as clip, or {KEEP}."
        )
    for text in texts:
        if alike(plain(embedding), encoded(clip, text)):
            return [embedding[:, : _length(text, embedding.shape[1], clip)], options]
    raise ValueError(
        f"The padding of the negative cannot be told, as its text cannot be read again: connect to clip what its CLIP "
        f"Text Encode has as clip, or {KEEP}."
    )


def _length(text, tokens, clip):
    """Up to the first of the equal numbers at the end: the end token of CLIP, which is its padding too."""
    found = numbers_behind(clip, text, tokens)
    if not found:
        raise ValueError(f"The padding of this text encoder's prompts cannot be told from their words: {KEEP}.")
    return tokens + 1 - min(max(map(_equal_at_the_end, found)), tokens)


def _equal_at_the_end(numbers):
    return next((n for n, number in enumerate(reversed(numbers)) if number != numbers[-1]), len(numbers))
