"""Reads, checks and finds the rows of presets.yaml and of the user's own table."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType

import folder_paths
import yaml

from .backbones import BACKBONES

PATH = Path(__file__).with_name("presets.yaml")
NOT_RUNNABLE = Path(__file__).with_name("not_runnable.yaml")
USER_FILE = "snoopi_presets.yaml"

CHOICES = {
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
}
WHOLE = ("channels", "resolution")
DIFFUSION_ONLY = ("levels", "alphas_cumprod", "output", "noise", "follows_base")
LISTS = ("timesteps", "levels", "backbones", "files")


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
    alphas_cumprod: float | None = None
    renoise: str = "none"
    output: str = "x0"
    channels: int | None = None
    latent_scale: float | None = None
    resolution: int | None = None
    alpha: float | None = None
    cfg: float = 1.0
    files: tuple[str, ...] = ()
    folder: str = ""
    source: str = ""

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
        return "lcm" if self.renoise == "fresh" else "euler"


def user_path() -> Path:
    """Where the user's own rows lie; there need not be such a file."""
    return Path(folder_paths.get_user_directory()) / USER_FILE


def all_presets() -> Mapping[str, Preset]:
    """The pack's rows and the user's by name; a row of the user takes the place of one of that name.

    Raises:
        ValueError: the user's table is malformed.
    """
    own = read_presets()
    path = user_path()
    return own | read_presets(path) if path.is_file() else own


def find_preset(name: str) -> Preset:
    """A row by name.

    Raises:
        ValueError: there is no such row (the sentence lists those there are), or the user's table is malformed.
    """
    presets = all_presets()
    if name not in presets:
        raise ValueError(f"There is no preset called {name}: choose one of {', '.join(presets)}.")
    return presets[name]


def read_presets(path: Path = PATH) -> Mapping[str, Preset]:
    """The rows of a preset table by name; read again only when the file has changed.

    Raises:
        ValueError: the table is malformed; the sentence names the file, the line, the row and the field.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


@functools.lru_cache(maxsize=8)
def _read(path: Path, mtime: int, size: int) -> Mapping[str, Preset]:
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        tree = loader.get_single_node()
        if tree is not None:
            loader.construct_document(tree)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, yaml.MappingNode) or not tree.value:
        raise ValueError(f"{path} holds no rows: write `name:` and its fields below it.")
    rows = {}
    for key, value in tree.value:
        name = str(loader.construct_object(key, deep=True))
        line = key.start_mark.line + 1
        if name in rows:
            raise ValueError(f"{path}, line {line}: there are two rows called {name}: give one another name.")
        is_row = isinstance(value, yaml.MappingNode)
        lines = {str(field.value): field.start_mark.line + 1 for field, _ in value.value} if is_row else {}
        place = functools.partial(_place, path, name, line, lines)
        rows[name] = _checked(name, loader.construct_object(value, deep=True), place)
    return MappingProxyType(rows)


def changed(preset: Preset, place: str, **changes) -> Preset:
    """`preset` with other values, checked as a row of a table is.

    Raises:
        ValueError: a value makes no sense; the sentence begins with `place` and names the field.
    """
    row = {field.name: getattr(preset, field.name) for field in fields(Preset) if field.name != "name"}
    row = {name: value for name, value in row.items() if value not in (None, "", ()) and value is not False}
    if str(changes.get("prediction", preset.prediction)).startswith("flow"):
        row = {name: value for name, value in row.items() if name not in DIFFUSION_ONLY}
    return _checked(preset.name, row | changes, lambda field: f"{place}, field {field}")


def _place(path: Path, name: str, line: int, lines: dict[str, int], field: str) -> str:
    return f"{path}, line {lines.get(field, line)}, row {name}, field {field}"


def _checked(name: str, row: object, place: Callable[[str], str]) -> Preset:
    def refuse(field: str, what: str):
        raise ValueError(f"{place(field)}: {what}.")

    known = {field.name: field for field in fields(Preset) if field.name != "name"}
    row = dict(row) if isinstance(row, dict) else {}
    for field in row:
        if field not in known:
            refuse(str(field), f"there is no such field; the fields are {', '.join(known)}")
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
            refuse(field, f"{row[field]!r} is not one of {', '.join(choices)}")
    for field, (least, most) in RANGES.items():
        if field in row and not (_is_number(row[field]) and least <= row[field] <= most):
            refuse(field, f"{row[field]!r} is not a number from {least} to {most}")
    for field in WHOLE:
        if field in row and type(row[field]) is not int:
            refuse(field, f"{row[field]!r} is not a whole number")
    for field in ("latent_scale", "alphas_cumprod"):
        if row.get(field) == 0 or (field == "alphas_cumprod" and row.get(field) == 1):
            refuse(field, f"{row[field]!r} would divide by zero")
    if type(row.get("follows_base", False)) is not bool:
        refuse("follows_base", f"{row['follows_base']!r} is not one of true, false")
    for field in ("model", "folder", "source"):
        if field in row and not isinstance(row[field], str):
            refuse(field, f"{row[field]!r} is not text")
    for backbone in row.get("backbones", ()):
        if backbone not in BACKBONES:
            refuse("backbones", f"{backbone!r} is not one of {', '.join(BACKBONES)}")
    for pattern in row.get("files", ()):
        if not isinstance(pattern, str) or not pattern.strip("*-_. "):
            refuse("files", f"{pattern!r} is not the name of a file")

    flow = row["prediction"].startswith("flow")
    for field in ("timesteps", "levels"):
        if field in row:
            _check_timesteps(row[field], flow, functools.partial(refuse, field))
    if "levels" in row and len(row["levels"]) != len(row["timesteps"]):
        refuse("levels", f"there are {len(row['levels'])}, but {len(row['timesteps'])} timesteps")
    for field in DIFFUSION_ONLY:
        if flow and field in row:
            refuse(field, "a flow model has no such thing: leave it out")
    return Preset(name=name, **row)


def _check_timesteps(values: tuple, flow: bool, refuse) -> None:
    if not values:
        refuse("there are none")
    for value in values:
        if flow and not (_is_number(value) and 0 < value <= 1000):
            refuse(f"{value!r} is not a number above 0 and up to 1000")
        if not flow and not (type(value) is int and 0 <= value <= 999):
            refuse(f"{value!r} is not a whole number from 0 to 999")
    if any(later >= earlier for earlier, later in zip(values, values[1:], strict=False)):
        refuse(f"{', '.join(map(str, values))} do not fall from step to step")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
