"""Finds the tokens of a word in a negative prompt that was encoded before."""

import re

import torch
from comfy.sd import CLIP

from ..guidance.conditioning import plain
from ..quoting import as_written

#: Weights of the same word that an encoder which weighs words makes two embeddings of, alike at all other tokens.
WEIGHTS = (1.0, 1.1)
STAND_IN = "x"


def find(word: str, texts: list[str], conditioning: list, clip: CLIP) -> tuple[int, torch.Tensor]:
    """Which entry of a negative holds the word, and where: bool [tokens].

    The text of a CONDITIONING is not in it: of the texts that may have been its own, the one is taken that `clip` makes
    the same embedding of.

    Args:
        word: one or several words, in any case.
        texts: what the graph holds before the negative.

    Raises:
        ValueError: it is in none of the texts, or none of these is the negative's; with the remedy.
    """
    among = [text for text in texts if _places(word, text)]
    if not among:
        raise ValueError(
            f"The word {as_written(word)} is not in the negative prompt: write one of its words, as it is there, or "
            f"leave word empty to see where the whole negative acts."
        )
    for text in among:
        embedding = encoded(clip, text)
        for number, (negative, *_) in enumerate(conditioning):
            length = negative.shape[1]  # less where its padding was left out
            if alike(plain(negative), embedding[:, :length]):
                return number, _tokens(word, text, embedding, clip)[:length]
    raise ValueError(
        f"The negative prompt with the word {as_written(word)} cannot be read again: connect to clip what its CLIP "
        f"Text Encode has as clip, or leave word empty to see where the whole negative acts."
    )


def _places(word: str, text: str) -> list[re.Match]:
    """Where the word is in a text; in languages without spaces, within others too."""
    escaped = re.escape(word)
    whole = [*re.finditer(rf"(?<!\w){escaped}(?!\w)", text, re.IGNORECASE)]
    return whole or ([] if word.isascii() else [*re.finditer(escaped, text, re.IGNORECASE)])


def _tokens(word, text, embedding, clip):
    plainly, weighted = (_with(word, text, f"({{}}:{weight})".format) for weight in WEIGHTS)
    rows = encoded(clip, plainly)
    if alike(rows, embedding):
        found = (encoded(clip, weighted) - rows).abs().amax(dim=(0, 2)) > 0
        if found.any() and not found.all():
            return found
    return _by_numbers(word, text, embedding.shape[1], clip)


def _with(word, text, change, only=None):
    """A text with every place of the word changed, or only one of them."""
    for number, place in reversed([*enumerate(_places(word, text))]):
        if only in (None, number):
            text = text[: place.start()] + change(place[0]) + text[place.end() :]
    return text


def _by_numbers(word, text, length, clip):
    """For encoders that weigh no words: where the numbers of the tokens differ once another word stands there."""
    found = torch.zeros(length, dtype=torch.bool)
    numbers = next(iter(numbers_behind(clip, text, length)), [])
    for place in range(len(_places(word, text))):
        others = numbers_of(clip, _with(word, text, lambda _: STAND_IN, place)).values()
        other = min(others, key=lambda other: abs(len(other) - len(numbers)))
        first = _alike_from_the_start(numbers, other)
        last = len(numbers) - _alike_from_the_start(numbers[first:][::-1], other[first:][::-1])
        off = len(numbers) - length
        found[max(first - off, 0) : max(last - off, 0)] = True
    if not found.any():
        raise ValueError(
            f"Where the word {as_written(word)} lies in the embedding cannot be told of this text encoder: leave word "
            f"empty to see where the whole negative acts."
        )
    return found


def _alike_from_the_start(one: list, other: list) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def numbers_behind(clip: CLIP, text: str, length: int) -> list[list]:
    """The numbers of which an embedding of so many tokens may be made: the shortest that are long enough.

    What an encoder takes off of them is at the beginning: words that tell it what to do.
    """
    long_enough = [numbers for numbers in numbers_of(clip, text).values() if len(numbers) >= length]
    return [numbers for numbers in long_enough if len(numbers) == min(map(len, long_enough))]


def numbers_of(clip: CLIP, text: str) -> dict[str, list]:
    """The numbers of the tokens, by encoder; an embedding in the text counts by its identity."""
    return {
        name: [token if isinstance(token, int) else id(token) for chunk in chunks for token, *_ in chunk]
        for name, chunks in clip.tokenize(text).items()
    }


def encoded(clip: CLIP, text: str) -> torch.Tensor:
    return plain(clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0])


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.cpu(), other.cpu(), rtol=1e-2, atol=1e-2)
