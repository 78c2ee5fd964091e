"""Reads a YAML file of settings, whatever stands in it: plain values, or one sentence with file, line and setting."""

import math
import stat
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, quoted, quoted_value

LARGEST_FILE = 2**20  # bytes
MOST_VALUES = 20_000  # with all aliases written out
DEEPEST = 8  # levels
MAPPING = "tag:yaml.org,2002:map"


def read_settings(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line of each setting ("lora.rank"). Raises UserError."""
    text, loader = "", None
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
            raise UserError(f"The config {quoted(path)} is not a YAML file of at most {LARGEST_FILE} bytes.")
        text = path.read_text(encoding="utf-8-sig")
        loader = _Loader(text)
        tree = loader.get_single_node()
        if not isinstance(tree, yaml.MappingNode):
            raise UserError(f"The config {quoted(path)} must be a YAML mapping of settings, like `batch_size: 64`.")
        return loader.mapping(tree), loader.lines
    except OSError as error:
        raise UserError(f"Cannot read the config {quoted(path)}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line, what = error.object.count(b"\n", 0, error.start), "it is not UTF-8 text"
    except yaml.reader.ReaderError as error:
        line, what = text.count("\n", 0, error.position), f"the character {error.character:#x} is not allowed"
    except yaml.MarkedYAMLError as error:
        line, what = (error.problem_mark or error.context_mark).line, error.problem
    except ValueError:  # a NUL or a lone surrogate in its name
        raise UserError(f"Cannot read the config {quoted(path)}: there can be no file of that name.") from None
    keys = _names(loader.inside) if loader else ""
    where = f", {quoted(keys)}" if keys else ""
    raise UserError(f"The config {quoted(path)} is not valid YAML: line {line + 1}{where}: {quoted(what)}.") from None


def read_value(text: str, source: str) -> Any:
    """One plain value, as it would stand behind `KEY:` in a file. Raises UserError that names `source`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if loader.size(node) > MOST_VALUES:
            raise _error("it holds itself, or more than a config can", node)
        is_mapping = isinstance(node, yaml.MappingNode) and node.tag == MAPPING
        return loader.mapping(node) if is_mapping else loader.plain(node)
    except yaml.YAMLError as error:
        what = getattr(error, "problem", None) or error
        raise UserError(f"{source}: the value is not valid YAML: {quoted(what)}.") from None


class _Loader(yaml.SafeLoader):
    """Makes nothing of what aliases or nesting make endless, and knows which setting it is in."""

    def __init__(self, text: str):
        super().__init__(text)
        self.inside, self.sizes, self.total = [], {}, 0  # inside: the keys, or numbers in a list, that lead here
        self.lines: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if len(self.inside) == DEEPEST:
            raise _error(f"it is nested deeper than {DEEPEST} levels", self.peek_event())
        self.inside.append(index)
        node = super().compose_node(parent, index)
        self.inside.pop()
        return node

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        for key, value in node.value:
            self.total += self.size(value)
            if self.total > MOST_VALUES:
                self.inside.append(key)
                raise _error("it holds itself, or more than a config can (aliases written out)", key)
        self.flatten_mapping(node)
        found = {}
        for key, value in node.value:
            self.inside.append(key)
            self.lines[_names(self.inside)] = key.start_mark.line + 1
            is_mapping = isinstance(value, yaml.MappingNode) and value.tag == MAPPING
            found[_name(key)] = self.mapping(value) if is_mapping else self.plain(value)
            self.inside.pop()
        return found

    def plain(self, node: yaml.Node) -> Any:
        try:
            return self.construct_object(node, deep=True)
        except Exception:  # KeyError, AttributeError, OverflowError and more, by tag
            said = quoted_value(node.value) if isinstance(node, yaml.ScalarNode) else "what stands there"
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise _error(f"{said} cannot be read as {quoted(tag)}", node) from None

    def size(self, node: yaml.Node) -> float:
        """How many values are in a node, an alias counted as what it stands for; infinite if it holds itself."""
        if node not in self.sizes:
            self.sizes[node] = math.inf
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            flat = [child for entry in children for child in (entry if isinstance(entry, tuple) else (entry,))]
            self.sizes[node] = 1 + sum(self.size(child) for child in flat)
        return self.sizes[node]


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _name(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else "[...]"


def _names(inside: list[Any]) -> str:
    return ".".join(_name(key) for key in inside if isinstance(key, yaml.Node))
