"""What the user got wrong, in one sentence; and the one way in which what others wrote gets into a sentence."""

import os
import reprlib

LONGEST_QUOTE, LONGEST_REASON, LONGEST_SENTENCE = 100, 160, 600  # characters


class UserError(Exception):
    """A mistake in a config, a path or a file; its text names the thing and the remedy (exit code 2, no traceback).

    Whatever went into it, the text is one line of at most 600 characters that every UTF-8 console can show.
    """

    def __init__(self, sentence: str):
        super().__init__(_shortened(_visible(sentence), LONGEST_SENTENCE))


def quoted(text: object) -> str:
    """A user's text, a path, an error or a value, as it may stand in a sentence.

    Control characters, lone surrogates and all else that cannot be shown are escaped; of a long text both ends stay. A
    value that is no text (a list from YAML, say) is written as Python would, at most a few items of it.
    """
    longest = LONGEST_QUOTE
    if isinstance(text, BaseException):
        text, longest = " ".join(str(text).split()) or type(text).__name__, LONGEST_REASON
    if isinstance(text, os.PathLike):
        text = os.fspath(text)
    text = text if isinstance(text, str) else _values.repr(text)
    return _shortened(_visible(_shortened(text, longest)), longest)


def quoted_value(value: object) -> str:
    """The same for a value whose kind matters: a text keeps its quotation marks, so that '1' is not 1."""
    return quoted(_values.repr(value))


class _Values(reprlib.Repr):
    """repr of bounded size and depth, also of lists that hold themselves, and of numbers with too many digits."""

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() < 400 else f"a number of {value.bit_length()} bits"


_values = _Values()
_values.maxstring = _values.maxother = LONGEST_QUOTE
_values.maxlevel, _values.maxlist, _values.maxtuple, _values.maxdict = 3, 6, 6, 6


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = (longest - 3) * 3 // 5  # of a path the end says more
    return f"{text[: longest - 3 - end]}...{text[-end:]}"
