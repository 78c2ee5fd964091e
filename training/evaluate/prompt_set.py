"""The prompt set of a recipe: prompts with ids, by which pictures are named."""

import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError, quoted
from ..prompts.read import fault_of, read_prompts
from ..recipe.shipped import shipped
from .recipe import Prompts

LARGEST_LIST = 2**26  # bytes of a .json file


@dataclass(frozen=True)
class Prompt:
    """One picture to draw. id: its file's name without the end; a group's pictures lie in a folder of its name.

    contrast: what a judge is to tell the unwanted thing from, as dog from cat.
    """

    id: str
    prompt: str
    negative: str = ""
    group: str = ""
    contrast: str = ""


def read_prompt_set(settings: Prompts, folder: Path, count: int | None = None) -> list[Prompt]:
    """Every picture of the set, in the order in which they are drawn. folder: of the recipe. count: fewer than its own.

    Raises UserError, also where the file holds fewer prompts than the recipe asks for.
    """
    source, wanted = _found(settings.source, folder), settings.count
    rows = _rows(source, settings)
    if wanted is not None and len(rows) < wanted:
        raise UserError(
            f"{quoted(source)} holds {len(rows)} prompts and the recipe wants {wanted}; give the whole file, or "
            f"--count {len(rows)} for a trial."
        )
    if settings.draw_seed is not None:
        random.Random(settings.draw_seed).shuffle(rows)
    found = []
    for row in rows[: min(count or len(rows), wanted or len(rows))]:
        for number in range(settings.each):
            name = row.id + (f"-{number:04d}" if settings.each > 1 else "")
            found.append(replace(row, id=f"{_as_folder(row.group)}/{name}" if row.group else name))
    _check_ids(source, [prompt.id for prompt in found])
    return found


def _rows(source: Path | str, settings: Prompts) -> list[Prompt]:
    """A prompt a line, with its id alone as id."""
    if "://" not in str(source) and Path(source).is_dir():
        files = sorted(path for path in Path(source).iterdir() if path.suffix in (".txt", ".json", ".jsonl"))
        if not files:
            raise UserError(f"{quoted(source)} holds no prompt file; give one file a group, .txt, .json or .jsonl.")
        return [replace(row, group=path.stem) for path in files for row in _rows(path, settings)]
    prompts = _list(source, None)
    values = {}
    for name in ("negative", "group", "id", "contrast"):
        column = getattr(settings, name)
        values[name] = _list(source, column) if column else [""] * len(prompts)
        if len(values[name]) != len(prompts):
            raise UserError(f"{quoted(source)} holds {len(prompts)} prompts but {len(values[name])} of `{name}`.")
    return [
        Prompt(values["id"][row] or f"{row:05d}", prompts[row], values["negative"][row], values["group"][row],
               values["contrast"][row])
        for row in range(len(prompts))
    ]  # fmt: skip


def _list(source: Path | str, column: str | None) -> list[str]:
    if not str(source).endswith(".json"):
        return read_prompts(source, column)
    path = shipped(source)
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise ValueError(f"it is larger than {LARGEST_LIST} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise ValueError("it is no list of texts")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read the prompt file {quoted(path)}: {quoted(reason)}.") from None
    if bad := next((fault for value in values if (fault := fault_of(value.strip()))), ""):
        raise UserError(f"{quoted(path)}: {bad}; correct or delete it.")
    return [value.strip() for value in values]


def _found(source: str, folder: Path) -> str | Path:
    """A path in the working folder or, where it is not there, beside the recipe."""
    path, beside = shipped(source), folder / source
    return beside if "://" not in source and not path.exists() and beside.exists() else source


def _as_folder(group: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", group).strip(".") or "_"


def _check_ids(source: Path | str, ids: list[str]) -> None:
    seen: set[str] = set()
    for one in ids:
        if not re.fullmatch(r"(?:[A-Za-z0-9_-][\w.-]{0,99}/)?[A-Za-z0-9_-][\w.-]{0,99}", one, re.ASCII):
            raise UserError(f"{quoted(source)}: the id {quoted(one)} cannot name a file; use letters, digits, . _ -.")
        if one.lower() in seen:  # some disks know no capital letters
            raise UserError(f"{quoted(source)}: the id {quoted(one)} is there twice; give every prompt its own.")
        seen.add(one.lower())
