"""Texts of users and files on their way out: quoted in sentences, logged to any console, shown in the browser."""

import contextlib
import functools
import reprlib
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable

QUOTE = 100
SENTENCE = 600
OMITTED = " ... "
#: Letters on a line of a node: its frontends break lines anywhere, but leave those that come broken.
LINE = 32

_values = reprlib.Repr()
_values.maxlevel, _values.maxstring, _values.maxother, _values.maxlong = 3, QUOTE - 2, QUOTE, QUOTE


def quoted(value: object) -> str:
    """`value` as a sentence may quote it: no control character, no lone surrogate, at most 100 characters.

    Args:
        value: a text, which comes without quotation marks, or anything else, as Python writes it; nothing of it that
            is not in the result is looked at, so that a list of lists of lists costs nothing.
    """
    if isinstance(value, str):
        return _cut(_escaped(_cut(value, 2 * QUOTE)), QUOTE)
    try:
        return _cut(_escaped(_values.repr(value)), QUOTE)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number too long to write"


def as_written(value: object) -> str:
    """`quoted`, where a text has quotation marks: 'vp' and 3 and ['vp']."""
    return f"'{quoted(value)}'" if isinstance(value, str) else quoted(value)


def listed(names: Iterable[str]) -> str:
    """The names with commas between, as many as a sentence has room for."""
    fitting, room = [], SENTENCE // 2
    for name in map(quoted, names):
        room -= len(name) + 2
        if room < 0:
            return ", ".join([*fitting, "..."])
        fitting.append(name)
    return ", ".join(fitting)


def sentence(text: str) -> str:
    """`text` as it can be logged on any console: at most 600 characters, its beginning and its end kept."""
    return _cut(_for_consoles(text), SENTENCE)


def is_plain(name: str) -> bool:
    """Whether a list may hold `name`: the frontend's lists are HTML, and a name there cannot be written otherwise."""
    return not set(name) & set("<>")


def shown(text: str) -> str:
    """`text` for the browser: at most 600 characters, and no HTML, which some frontends run and others show as it is.

    ComfyUI's frontend 1.32 gives what is shown on a node to innerHTML.
    """
    text = text.encode(errors="backslashreplace").decode().replace("<", "‹").replace(">", "›")
    return _cut(text, SENTENCE)


def show(node: type, text: str, details: str = "") -> str:
    """Write `text` on the node in the browser, if ComfyUI runs as a server; both without HTML."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node.hidden and node.hidden.unique_id:
        lines = textwrap.fill(shown(text), LINE, break_long_words=False, break_on_hyphens=False)
        with contextlib.suppress(UnicodeEncodeError):  # the id of a node is any text too
            server.send_progress_text(lines, node.hidden.unique_id)
    return shown(f"{text} {details}".rstrip())


def printable_errors(execute: Callable) -> Callable:
    """The method of a node, whose errors leave as one sentence that ComfyUI can log, and stand on the node too.

    ComfyUI 0.33 shows what a node raises only behind a button. ComfyUI's worker logs an error with all that caused it,
    and ends for good if the console cannot encode a character.
    """

    @functools.wraps(execute)
    def wrapped(cls, *args, **kwargs):
        try:
            return execute(cls, *args, **kwargs)
        except Exception as error:
            if isinstance(error, ValueError):
                show(cls, str(error))
            logged = "".join(traceback.format_exception(error))
            is_long = isinstance(error, ValueError) and len(str(error)) > SENTENCE
            if not is_long and _for_consoles(logged) == logged:
                raise
            told = sentence(str(error))
        raise ValueError(told)

    return wrapped


def _for_consoles(text: str) -> str:
    """`text` with what the consoles cannot encode, if there are any, written as an escape."""
    for encoding in {getattr(stream, "encoding", None) or "utf-8" for stream in (sys.stdout, sys.stderr)} | {"utf-8"}:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    end = length // 3
    return text[: length - end - len(OMITTED)] + OMITTED + text[-end:]
