"""Reads, checks and finds the rows of presets.yaml and of the user's own table."""

import datetime
import functools
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType

import folder_paths
import yaml

from ..quoting import as_written, is_plain, listed, quoted
from .backbones import BACKBONES

PATH = Path(__file__).with_name("presets.yaml")
NOT_RUNNABLE = Path(__file__).with_name("not_runnable.yaml")
USER_FILE = "snoopi_presets.yaml"
LARGEST_FILE = 2**18  # bytes; a table of 500 rows
MOST_VALUES = 20_000  # with all aliases written out
DEEPEST = 8  # levels
LONGEST_NAME = 255

SHIFTS = ("flux1", "flux2")
CHOICES = {
    "solver": ("euler", "euler_ancestral", "res_multistep"),
    "spacing": ("trailing", "lcm"),
    "prediction": ("eps", "v", "x0", "flow-", "flow+"),
    "noise": ("unit", "vp", "ipi"),
    "renoise": ("none", "fresh"),
    "output": ("x0", "tcd"),
}
RANGES = {
    "alphas_cumprod": (0, 1),
    "channels": (1, 4096),
    "latent_scale": (0, 100),
    "resolution": (1, 65536),
    "alpha": (0, 2),
    "cfg": (1, 100),
    "strength": (0.01, 10),
}
WHOLE = ("channels", "resolution")
DIFFUSION_ONLY = ("levels", "alphas_cumprod", "output", "noise", "follows_base", "spacing")
LISTS = ("timesteps", "levels", "image_starts", "stage", "backbones", "files", "words")


@dataclass(frozen=True)
class Preset:
    """One row; presets.yaml says what each field means."""

    name: str
    prediction: str
    timesteps: tuple[float, ...]
    follows_base: bool = False
    model: str = ""
    backbones: tuple[str, ...] = ()
    noise: str = "unit"
    levels: tuple[float, ...] = ()
    image_starts: tuple[float, ...] = ()
    alphas_cumprod: float | None = None
    renoise: str = "none"
    output: str = "x0"
    channels: int | None = None
    latent_scale: float | None = None
    resolution: int | None = None
    alpha: float | None = None
    cfg: float = 1.0
    solver: str = "euler"
    spacing: str = "trailing"
    shift: float | str | None = None
    stage: tuple[int, ...] = ()
    strength: float = 1.0
    files: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    folder: str = ""
    source: str = ""
    checked: str = ""

    @property
    def is_flow(self) -> bool:
        return self.prediction.startswith("flow")

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """How noisy the picture is at each step, as timesteps."""
        return self.levels or self.timesteps

    @property
    def sampler(self) -> str:
        """The name of ComfyUI's sampler that takes its steps."""
        return "lcm" if self.renoise == "fresh" else self.solver


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
        rows[name] = _checked(name, row, place)
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


def changed(preset: Preset, place: str, **changes) -> Preset:
    """`preset` with other values, checked as a row of a table is.

    Raises:
        ValueError: a value makes no sense; the sentence begins with `place` and names the field.
    """
    row = {field.name: getattr(preset, field.name) for field in fields(Preset) if field.name != "name"}
    row = {name: value for name, value in row.items() if value not in (None, "", ()) and value is not False}
    if str(changes.get("prediction", preset.prediction)).startswith("flow"):
        row = {name: value for name, value in row.items() if name not in DIFFUSION_ONLY}
    else:
        row.pop("shift", None)
    return _checked(preset.name, row | changes, lambda field: f"{place}, field {field}")


def _place(path: Path, name: str, line: int, lines: dict[str, int], field: str) -> str:
    return f"{path}, line {lines.get(field, line)}, row {name}, field {field}"


def _checked(name: str, row: dict[str, object], place: Callable[[str], str]) -> Preset:
    def refuse(field: str, what: str):
        raise ValueError(f"{place(field)}: {what}.")

    known = {field.name: field for field in fields(Preset) if field.name != "name"}
    for field in row:
        if field not in known:
            refuse(field, f"there is no such field; the fields are {', '.join(known)}")
    for field, described in known.items():
        if described.default is MISSING and field not in row:
            refuse(field, "it is missing")
    for field in [field for field in row if row[field] is None]:
        refuse(field, "it is empty")

    for field in LISTS:
        if field in row:
            value = row[field]
            row[field] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for field, choices in CHOICES.items():
        if field in row and row[field] not in choices:
            refuse(field, f"{as_written(row[field])} is not one of {', '.join(choices)}")
    for field, (least, most) in RANGES.items():
        if field in row and not (_is_number(row[field]) and least <= row[field] <= most):
            refuse(field, f"{as_written(row[field])} is not a number from {least} to {most}")
    for field in WHOLE:
        if field in row and type(row[field]) is not int:
            refuse(field, f"{as_written(row[field])} is not a whole number")
    for field in ("latent_scale", "alphas_cumprod"):
        if row.get(field) == 0 or (field == "alphas_cumprod" and row.get(field) == 1):
            refuse(field, f"{as_written(row[field])} would divide by zero")
    if type(row.get("follows_base", False)) is not bool:
        refuse("follows_base", f"{as_written(row['follows_base'])} is not one of true, false")
    if isinstance(row.get("checked"), datetime.date):  # as YAML reads a date
        row["checked"] = row["checked"].isoformat()
    for field in ("model", "folder", "source", "checked"):
        if field in row and not isinstance(row[field], str):
            refuse(field, f"{as_written(row[field])} is not text")
    for backbone in row.get("backbones", ()):
        if not isinstance(backbone, str) or backbone not in BACKBONES:
            refuse("backbones", f"{as_written(backbone)} is not one of {', '.join(BACKBONES)}")
    for field in ("files", "words"):
        for pattern in row.get(field, ()):
            if not isinstance(pattern, str) or not 0 < len(pattern.strip("*-_. ")) <= LONGEST_NAME:
                refuse(field, f"{as_written(pattern)} is not the name of a file")

    flow = row["prediction"].startswith("flow")
    for field in ("timesteps", "levels", "image_starts"):
        if field in row:
            _check_timesteps(row[field], flow, functools.partial(refuse, field))
    if "levels" in row and len(row["levels"]) != len(row["timesteps"]):
        refuse("levels", f"there are {len(row['levels'])}, but {len(row['timesteps'])} timesteps")
    if "shift" in row:
        if not flow:
            refuse("shift", "only a flow model has one: leave it out")
        if row["shift"] not in SHIFTS and not (_is_number(row["shift"]) and 0.01 <= row["shift"] <= 100):
            wanted = f"a number from 0.01 to 100 or one of {', '.join(SHIFTS)}"
            refuse("shift", f"{as_written(row['shift'])} is not {wanted}")
    if "stage" in row:
        _check_stage(row["stage"], len(row["timesteps"]), functools.partial(refuse, "stage"))
    for field in DIFFUSION_ONLY:
        if flow and field in row:
            refuse(field, "a flow model has no such thing: leave it out")
    return Preset(name=name, **row)


def _check_stage(values: tuple, steps: int, refuse) -> None:
    if len(values) != 2 or any(type(value) is not int for value in values):
        refuse("it is not two whole numbers, the step where this stage begins and the one before which it ends")
    if not 0 <= values[0] < values[1] <= steps:
        refuse(f"{listed(map(str, values))} are not steps of {steps}, the first below the second")


def _check_timesteps(values: tuple, flow: bool, refuse) -> None:
    if not values:
        refuse("there are none")
    for value in values:
        if flow and not (_is_number(value) and 0 < value <= 1000):
            refuse(f"{as_written(value)} is not a number above 0 and up to 1000")
        if not flow and not (type(value) is int and 0 <= value <= 999):
            refuse(f"{as_written(value)} is not a whole number from 0 to 999")
    if any(later >= earlier for earlier, later in zip(values, values[1:], strict=False)):
        refuse(f"{listed(map(str, values))} do not fall from step to step")


def _is_number(value: object) -> bool:
    return type(value) is int or type(value) is float and math.isfinite(value)
