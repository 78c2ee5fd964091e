"""What the name of a file tells: which row of the table it is, or that it is no few-step model at all.

Names are compared by their words, and a word ends at a separator, at a change of case, or between letters and digits:
`bigLust_v16DMD2` holds `dmd2`, and `hyperrealism` does not hold `hyper`.
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..quoting import listed, quoted
from .files import ModelFile
from .preset import LONGEST_NAME, Preset
from .presets import all_presets

PATH = Path(__file__).with_name("names.yaml")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
XL = re.compile(r"XL(?=[A-Z]{2})")  # as in "XLDMD"
TRAINED_FOR = re.compile(r"(?<![A-Za-z0-9])steps?(?=\d{3})", re.IGNORECASE)
QUANTIZED = re.compile(r"[-_.]I?Q\d\w*$", re.IGNORECASE)
_STEPS = re.compile(r"\|\d+\|step\|")
ENDING = re.compile(r"\.(safetensors|sft|ckpt|pt|pth|bin|gguf)$", re.IGNORECASE)


@dataclass(frozen=True)
class Named:
    """What a name tells.

    row: the row that it fits; None if none, or if there are several.
    word: what it was known by, if that is only what such files are mostly called.
    several: the names of the rows that it fits equally well.
    """

    row: Preset | None = None
    word: str = ""
    several: tuple[str, ...] = ()


def preset_by_name(name: str, backbone: str | None, is_lora: bool = False) -> Named:
    """The row whose `files`, or for a whole model `words`, are in `name`, among those for `backbone`.

    Of two that are found, one that is part of the other counts for nothing; two in different places are a doubt. What
    the file itself is called counts before the folder that it lies in. A published base model is of no row.
    """
    if not is_lora and is_published_base(name, backbone):
        return Named()
    return next(
        (named for text in (_file(name), name) if (named := _in_text(text, backbone, is_lora)) != Named()), Named()
    )


def _in_text(text: str, backbone: str | None, is_lora: bool) -> Named:
    words = _words(text)
    if _holds_any(words, _data()["not_few_step"]):
        return Named()
    found = [
        (span, row, pattern if pattern in row.words else "")
        for row in all_presets().values()
        if (not row.backbones or backbone in row.backbones) and (not is_lora or "loras" in row.folder or not row.folder)
        for pattern in (row.files if is_lora else (*row.files, *row.words))
        for span in _places(words, pattern)
    ]
    longest = [one for one in found if not any(_is_part(one[0], other[0]) for other in found)]
    rows = list(dict.fromkeys(row.name for _, row, _ in longest))
    if len(rows) > 1:
        return Named(several=tuple(rows))
    return Named(longest[0][1], longest[0][2]) if longest else Named()


def named_by(file: ModelFile, backbone: str | None, is_lora: bool) -> tuple[Named, str]:
    """What a file's metadata and name tell, and how that is known, or why it is in doubt, as a part of a sentence.

    Of a LoRA the metadata count first: one that changes a text encoder, or was trained on pictures with captions and is
    not called by a number of steps, is an ordinary one, whatever word its name holds. Of a whole model the models and
    LoRAs that it was merged of count last.
    """
    called, trusted = quoted(file.name), _STEPS.search(_joined(_words(file.name)))
    if is_lora and (file.changes_text or (_was_captioned(file.metadata) and not trusted)):
        return Named(), ""
    by_name = file.name, f"the name of the file {called}"
    by_title = [(title, f"the metadata of the file {called}") for title in _titles(file.metadata)]
    doubt = ""
    for text, where in (*by_title, by_name) if is_lora else (by_name, *by_title):
        named = preset_by_name(text, backbone, is_lora)
        if named.row:
            return named, f"most likely, by the word {named.word} in {where}" if named.word else f"by {where}"
        if named.several:
            doubt = doubt or f"auto cannot know which of several presets {where} means ({listed(named.several)})"
    if is_lora or doubt:
        return Named(), doubt
    merged = _merged_of(file.metadata, backbone)
    if len(merged) == 1:
        return Named(merged[0]), f"most likely, by what the metadata of the file {called} say that it was merged of"
    if merged:
        several = listed(row.name for row in merged)
        doubt = f"auto cannot know which of several presets that {called} was merged of it is ({several})"
    return Named(), doubt


def is_published_base(name: str, backbone: str | None) -> bool:
    """Whether a file is called as a published model that needs many steps and CFG, whatever its number format."""
    stem = _joined(_words(_formats().sub(" ", QUANTIZED.sub("", ENDING.sub("", _file(name))))))
    patterns = _data()["undistilled"].get(backbone, ())
    return any(_regex(_formats().sub(" ", pattern)).fullmatch(stem) for pattern in patterns)


def stage_of(row: Preset, bases: list[str]) -> tuple[Preset, str] | None:
    """The row for one stage, and the file that tells, where a LoRA for both stages is on the model of one."""
    for base in bases:
        words = _words(_file(base))
        for pattern, name in _data()["stages"].get(row.name, {}).items():
            if _places(words, pattern) and name in all_presets():
                return all_presets()[name], base
    return None


def is_for_other_families(name: str, backbone: str | None) -> tuple[str, ...]:
    """The families of the rows that a LoRA's name fits, if `backbone` is none of them."""
    rows = all_presets().values()
    words = _words(_file(name))
    fitting = [row for row in rows if "loras" in row.folder and any(_places(words, pattern) for pattern in row.files)]
    families = tuple(dict.fromkeys(family for row in fitting for family in row.backbones))
    return () if backbone in families else families


def _was_captioned(metadata: dict[str, str]) -> bool:
    return any(key in metadata for key in _data()["captioned"])


def _titles(metadata: dict[str, str]) -> list[str]:
    """The names that metadata give the model itself."""
    return [metadata[key] for key in _data()["titles"] if 0 < len(metadata.get(key, "")) <= LONGEST_NAME]


def _merged_of(metadata: dict[str, str], backbone: str | None) -> list[Preset]:
    """The rows of the models and LoRAs that metadata say a model was merged of, but for those of one step alone."""
    rows = {}
    for key, only in _data()["recipes"].items():
        with contextlib.suppress(ValueError, RecursionError):
            for name in _names_in(json.loads(metadata.get(key, "null")), only):
                row = preset_by_name(name, backbone, bool(only)).row
                if row and len(row.timesteps) > 1:
                    rows[row.name] = row
    return list(rows.values())


def _names_in(recipe: object, only: str | None, key: str = "") -> Iterator[str]:
    """The names of files in a recipe or a graph, those below keys that hold `only`; a LoRA of strength 0 is none."""
    if isinstance(recipe, dict):
        if recipe.get("strength_model") != 0:
            for name, value in recipe.items():
                yield from _names_in(value, only, name)
    elif isinstance(recipe, list):
        for value in recipe:
            yield from _names_in(value, only, key)
    elif isinstance(recipe, str) and ENDING.search(recipe) and (not only or only in key):
        yield recipe


def _file(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


def _words(name: str) -> list[str]:
    """The words of a name in lower case; "8steps" and "8-step" are both 8, step; "step600" is no number of steps."""
    words = [word.lower() for word in WORD.findall(XL.sub("XL-", TRAINED_FOR.sub("-", name)))]
    return ["step" if word in ("steps", "stp") else word for word in words]


def _joined(words: Iterable[str]) -> str:
    return f"|{'|'.join(words)}|"


def _places(words: list[str], pattern: str) -> list[tuple[int, int]]:
    text = _joined(words)
    for phrase in _data()["other_meanings"]:
        text = _regex(phrase).sub(lambda match: "|" * len(match[0]), text)
    match = _regex(pattern).search(text)
    return [match.span()] if match else []


def _holds_any(words: list[str], patterns: Iterable[str]) -> bool:
    return any(_places(words, pattern) for pattern in patterns)


@functools.lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern:
    """A pattern of a row as it is found between the words of a name; separators in it stand for nothing."""
    letters = re.sub(r"[^a-z0-9*]", "", pattern.lower().replace("steps", "step"))
    between = r"\|?".join(".*" if letter == "*" else letter for letter in letters)
    return re.compile(rf"\|{between}\|")


def _is_part(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and other[0] <= one[0] and one[1] <= other[1]


@functools.cache
def _data() -> dict:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


@functools.cache
def _formats() -> re.Pattern:
    """The words for number formats."""
    return re.compile(rf"(?<![a-z0-9])({'|'.join(_data()['formats'])})(?![a-z0-9])", re.IGNORECASE)
