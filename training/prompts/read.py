"""Prompt files and streamed datasets, checked before the work begins.

A prompt's id is its place in the list that `read_prompts` gives: the same file or snapshot gives the same ids.
"""

import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from tqdm import tqdm

from ..errors import UserError, quoted
from ..recipe.shipped import remedy, shipped

COLUMNS = ("prompt", "caption", "text")  # tried in this order
LONGEST = 10_000  # characters; every text encoder stops reading long before
LONGEST_LINE = 2**24  # bytes
STREAM = "datasets://"
READERS = {".txt": "one prompt a line", ".jsonl": "key `prompt`", ".parquet": "column `prompt`"}
Row = tuple[str, int, object]  # where it stands ("line"), its number from 1, and what it holds


def read_prompts(source: str | Path, column: str | None = None, skip_bad: bool = False) -> list[str]:
    """All prompts, in their order.

    source: a .txt file (one a line), a .jsonl file (an object or a string a line), a .parquet file, or
    `datasets://OWNER/NAME?split=train&name=CONFIG`, of which the text column alone is fetched, once, into a snapshot
    in the cache folder of `datasets` (so a resumed run reads the same prompts, without a network; of several processes
    one should come first). column: the key or column; by default `prompt`, `caption` or `text`. skip_bad: leave out
    empty and huge prompts, telling how many on stderr, instead of refusing the file.

    Raises UserError, naming file and line, for anything that is not a list of prompts.
    """
    text = str(source)
    if text.startswith(STREAM):
        path = snapshot(text, column)
        rows: Iterable[Row] = _jsonl_rows(path, None)
        text = f"{text} (snapshot {path})"
    else:
        path = shipped(source)
        if path.suffix not in READERS:
            kinds = ", ".join(f"{suffix} ({how})" for suffix, how in READERS.items())
            raise UserError(f"The prompt file {quoted(path)} must end in {kinds}, or be {STREAM}OWNER/NAME.")
        reader = {".txt": _txt_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}[path.suffix]
        rows = reader(path, column)
    return _checked(text, rows, skip_bad)


def digest(prompts: Iterable[str]) -> str:
    """Hexadecimal SHA-256 of the list, by which a resumed run or a cache knows its prompts again."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(prompt.encode() + b"\n")
    return found.hexdigest()


def _checked(source: str, rows: Iterable[Row], skip_bad: bool) -> list[str]:
    prompts, bad, first = [], 0, ""
    for unit, number, value in rows:
        prompt = value.strip() if isinstance(value, str) else ""
        if not (fault := fault_of(prompt)):
            prompts.append(prompt)
            continue
        bad += 1
        first = first or f"{unit} {number}: {fault}"
    if bad and skip_bad:
        print(f"{quoted(source)}: {bad} empty or huge prompts are left out; the first is {first}.", file=sys.stderr)
    elif bad:
        raise UserError(
            f"{quoted(source)}, {first}; correct or delete it ({bad} such in this file), or set skip_bad_prompts."
        )
    if not prompts:
        raise UserError(f"The prompt file {quoted(source)} holds no prompt; write at least one, one a line.")
    return prompts


def fault_of(prompt: str) -> str:
    """Why a text cannot be a prompt; "" if it can."""
    if not prompt:
        return "no prompt"
    if "\0" in prompt:
        return "a NUL character in the prompt"
    if len(prompt) > LONGEST:
        return f"the prompt has {len(prompt)} characters, allowed are {LONGEST}"
    if re.search("[\ud800-\udfff]", prompt):
        return "half of a character (a lone surrogate) in the prompt"
    return ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, UTF-8 with or without a mark; blank lines at the end are left out."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # would be waited for, perhaps for ever
        raise UserError(f"The prompt file {quoted(path)} is a pipe or a device; give a file.")
    try:
        with path.open("rb") as file:
            raws = enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1)
            yield from _without_blank_end((number, _decoded(raw, path, number)) for number, raw in raws)
    except OSError as error:
        why = quoted(error.strerror or error)
        raise UserError(f"Cannot read the prompt file {quoted(path)}: {why}{remedy(path)}.") from None


def _without_blank_end(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    held: list[tuple[int, str]] = []  # blank lines, and the first behind them that is not
    for number, line in lines:
        held.append((number, line))
        if line:
            yield from held
            held.clear()


def _decoded(raw: bytes, path: Path, number: int) -> str:
    """A line without the space around it. Raises UserError."""
    if len(raw) == LONGEST_LINE and not raw.endswith(b"\n"):
        raise UserError(f"{quoted(path)}, line {number}: longer than 16 MiB; write one prompt a line.")
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{quoted(path)}, line 1: this is UTF-16 text, not UTF-8; save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError:
        raise UserError(f"{quoted(path)}, line {number}: not UTF-8 text; save the file as UTF-8.") from None


def _txt_rows(path: Path, column: str | None) -> Iterator[Row]:
    return (("line", number, line) for number, line in _lines(path))


def _jsonl_rows(path: Path, column: str | None) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line:
            yield "line", number, None
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise UserError(f"{quoted(path)}, line {number}: not valid JSON.") from None
        if isinstance(entry, dict):
            key = column or next((name for name in COLUMNS if name in entry), None)
            if key is None or key not in entry:
                wanted = f"`{quoted(column)}`" if column else " or ".join(f"`{name}`" for name in COLUMNS)
                raise UserError(
                    f'{quoted(path)}, line {number}: no prompt; there is no key {wanted}, write {{"prompt": "a pet"}}.'
                )
            entry = entry[key]
        yield "line", number, entry


def _parquet_rows(path: Path, column: str | None) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"Reading {quoted(path)} needs the package pyarrow; install the extra `training`.") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            name = _column(str(path), file.schema_arrow.names, column)
            kind = file.schema_arrow.field(name).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(
                    f"{quoted(path)}: the column `{quoted(name)}` holds {quoted(str(kind))}, not text; "
                    f"name the column with the prompts."
                )
            values = (batch.column(0).to_pylist() for batch in file.iter_batches(columns=[name]))
            for number, value in enumerate(itertools.chain.from_iterable(values), start=1):
                yield "row", number, value
    except OSError as error:
        raise UserError(
            f"Cannot read the prompt file {quoted(path)} after row {number}: {quoted(error.strerror or error)}."
        ) from None
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{quoted(path)}, after row {number}: the parquet file is damaged ({quoted(error)}); copy it again."
        ) from None


def _column(source: str, names: list[str], column: str | None) -> str:
    found = [name for name in ([column] if column else COLUMNS) if name in names]
    if not found:
        wanted = f"`{quoted(column)}`" if column else " or ".join(f"`{name}`" for name in COLUMNS)
        known = quoted(", ".join(names))
        raise UserError(f"{quoted(source)} has no column {wanted}; it has {known}: name the right one.")
    return found[0]


def snapshot(source: str, column: str | None = None) -> Path:
    """The text column of `datasets://OWNER/NAME?split=...&name=...` as a local .jsonl, a string a line.

    Fetched once, with progress; an interrupted fetch goes on where it stopped. Raises UserError.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"Reading {quoted(source)} needs the package datasets; install the extra `training`.") from None
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "snoopi-prompts"
    target = folder / f"{hashlib.sha256(f'{source} {column}'.encode()).hexdigest()[:16]}.jsonl"
    if target.exists():
        return target
    address = urlsplit(source)
    options = dict(parse_qsl(address.query))
    if odd := sorted(set(options) - {"split", "name", "revision"}):
        raise UserError(f"{quoted(source)}: there is no option `{quoted(odd[0])}`; known are split, name and revision.")
    try:
        stream = datasets.load_dataset(
            address.netloc + address.path, split=options.pop("split", "train"), streaming=True, **options
        )
        features = stream.column_names or list(next(iter(stream)))
        name = _column(source, features, column)
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        done = _keep_whole_lines(partial)
        rows = stream.select_columns([name]).skip(done)
        with partial.open("a") as file:
            for row in tqdm(
                rows, desc=f"fetching prompts of {address.netloc}{address.path}", initial=done, unit=" rows"
            ):
                file.write(json.dumps(row[name]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except UserError:
        raise
    except Exception as error:  # the library passes on whatever its many readers raise
        raise UserError(f"Cannot fetch prompts from {quoted(source)}: {quoted(error)}.") from error
    return target


def _keep_whole_lines(path: Path) -> int:
    """Cuts off what an interruption left of the last line; returns how many lines there are."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    with path.open("r+b") as file:
        file.truncate(len(whole))
    return whole.count(b"\n")
