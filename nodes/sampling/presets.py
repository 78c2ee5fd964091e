"""Reads and finds the rows of presets.yaml and of the user's own table; preset.py says what a row may be."""

import functools
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import folder_paths
import yaml

from ..quoting import as_written, is_plain, listed, quoted
from .preset import Preset, checked

PATH = Path(__file__).with_name("presets.yaml")
NOT_RUNNABLE = Path(__file__).with_name("not_runnable.yaml")
USER_FILE = "snoopi_presets.yaml"
LARGEST_FILE = 2**18  # bytes; a table of 500 rows
MOST_VALUES = 20_000  # with all aliases written out
DEEPEST = 8  # levels


def user_path() -> Path:
    """Where the user's own rows lie; there need not be such a file."""
    return Path(folder_paths.get_user_directory()) / USER_FILE


def all_presets() -> Mapping[str, Preset]:
    """The pack's rows and the user's by name; a row of the user takes the place of one of that name.

    Raises:
        ValueError: the user's table is malformed.
    """
    own, path = read_presets(), user_path()
    try:
        os.lstat(path)
    except FileNotFoundError:
        return own
    except OSError:
        pass  # read_presets says what is wrong
    return own | read_presets(path)


def usable_presets() -> tuple[Mapping[str, Preset], str]:
    """The rows there are, and what is wrong with the user's table, if anything, for which its rows are left out."""
    try:
        return all_presets(), ""
    except ValueError as error:
        return read_presets(), str(error)


def find_preset(name: str) -> Preset:
    """A row by name; the pack's own can be had whatever the user's table is like.

    Raises:
        ValueError: there is no such row (the sentence lists those there are), or the user's table is malformed.
    """
    presets, trouble = usable_presets()
    if isinstance(name, str) and name in presets:
        return presets[name]
    raise ValueError(trouble or f"There is no preset called {quoted(name)}: choose one of {listed(presets)}.")


def read_presets(path: Path = PATH) -> Mapping[str, Preset]:
    """The rows of a preset table by name; read again only when the file has changed.

    Raises:
        ValueError: the table is malformed; the sentence names the file, the line, the row and the field.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file: move it away, or write your rows into a file of that name.")
        if status.st_size > LARGEST_FILE:
            raise ValueError(f"{path} is no table of presets: it has {status.st_size} bytes, more than {LARGEST_FILE}.")
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


@functools.lru_cache(maxsize=8)
def _read(path: Path, mtime: int, size: int) -> Mapping[str, Preset]:
    loader, tree = _parsed(path)
    rows = {}
    for key, value in tree.value:
        name, line = _name(key), key.start_mark.line + 1
        if name in rows:
            raise ValueError(f"{path}, line {line}: there are two rows called {name}: give one another name.")
        if not is_plain(name):
            raise ValueError(f"{path}, line {line}: the row {name} has < or > in its name: take them out.")
        pairs = value.value if isinstance(value, yaml.MappingNode) else ()
        lines = {_name(field): field.start_mark.line + 1 for field, _ in pairs}
        place = functools.partial(_place, path, name, line, lines)
        row = {_name(field): _constructed(loader, node, place(_name(field))) for field, node in pairs}
        rows[name] = checked(name, row, place)
    return MappingProxyType(rows)


class _Loader(yaml.SafeLoader):
    """Knows in which row and field it is, and goes no deeper than a table does."""

    def __init__(self, text: str):
        super().__init__(text)
        self.inside = []  # the keys, or numbers in a list, that lead to where it is

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if len(self.inside) == DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f"it is nested deeper than {DEEPEST} levels", self.peek_event().start_mark
            )
        self.inside.append(index)
        node = super().compose_node(parent, index)
        self.inside.pop()
        return node


def _parsed(path: Path) -> tuple[_Loader, yaml.MappingNode]:
    """The table as YAML nodes, merged rows written out; no value is made of them yet."""
    text, loader = "", None
    try:
        text = path.read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        tree = loader.get_single_node()
        if not isinstance(tree, yaml.MappingNode) or not tree.value:
            raise ValueError(f"{path} holds no rows: write `name:` and its fields below it.")
        _check_size(path, tree)
        for mapping in (tree, *(value for _, value in tree.value if isinstance(value, yaml.MappingNode))):
            loader.flatten_mapping(mapping)
        return loader, tree
    except UnicodeDecodeError as error:
        line, what = error.object.count(b"\n", 0, error.start), "it is not UTF-8 text"
    except yaml.reader.ReaderError as error:
        line, what = text.count("\n", 0, error.position), f"the character {error.character:#x} is not allowed"
    except yaml.MarkedYAMLError as error:
        line, what = (error.problem_mark or error.context_mark).line, quoted(error.problem)
    keys = zip(("row", "field"), loader.inside[1:] if loader else (), strict=False)
    where = "".join(f", {kind} {_name(key)}" for kind, key in keys if isinstance(key, yaml.Node))
    raise ValueError(f"{path} is not YAML that can be read: line {line + 1}{where}: {what}.")


def _check_size(path: Path, tree: yaml.MappingNode) -> None:
    """Refuse what aliases make endless, or far larger than the file."""
    sizes, total = {}, 0
    for key, row in tree.value:
        for field, node in row.value if isinstance(row, yaml.MappingNode) else [(key, row)]:
            total += _size(node, sizes)
            if total > MOST_VALUES:
                place = f"{path}, line {field.start_mark.line + 1}, row {_name(key)}, field {_name(field)}"
                raise ValueError(f"{place}: it holds itself, or more than a table can (aliases written out).")


def _size(node: yaml.Node, sizes: dict[yaml.Node, float]) -> float:
    """How many values are in a node, an alias counted as what it stands for; infinite if it holds itself."""
    if node not in sizes:
        sizes[node] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = [child for entry in children for child in (entry if isinstance(entry, tuple) else (entry,))]
        sizes[node] = 1 + sum(_size(child, sizes) for child in flat)
    return sizes[node]


def _constructed(loader: _Loader, node: yaml.Node, place: str) -> object:
    """The value of a node; whatever PyYAML makes of its tag and text, a sentence that names the place."""
    try:
        return loader.construct_object(node, deep=True)
    except Exception as error:  # KeyError, AttributeError, OverflowError and more, by tag
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        said = as_written(node.value) if isinstance(node, yaml.ScalarNode) else "what stands there"
        raise ValueError(f"{place}: {said} cannot be read as {quoted(tag)}.") from error


def _name(key: yaml.Node) -> str:
    return quoted(key.value) if isinstance(key, yaml.ScalarNode) else "[...]"


def _place(path: Path, name: str, line: int, lines: dict[str, int], field: str) -> str:
    return f"{path}, line {lines.get(field, line)}, row {name}, field {field}"
