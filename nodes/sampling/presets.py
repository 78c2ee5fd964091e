"""Reads, checks and finds the rows of presets.yaml."""

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

PATH = Path(__file__).with_name("presets.yaml")
CHOICES = {"prediction": ("eps",), "noise": ("unit", "vp")}


@dataclass(frozen=True)
class Preset:
    """One row: what the network predicts, the timestep it starts from, and how strong its first noise is."""

    prediction: str
    timestep: int
    noise: str


def read_presets(path: Path = PATH) -> dict[str, Preset]:
    """The rows of a preset table by name.

    Raises:
        ValueError: the table is malformed; the sentence names the file, the row and the field.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path} holds no rows: write `name:` and its fields below it.")
    return {str(name): _checked(f"{path}, row {name}", row) for name, row in table.items()}


def find_preset(name: str) -> Preset:
    """A row of the pack's own table.

    Raises:
        ValueError: there is no such row; the sentence lists those there are.
    """
    presets = read_presets()
    if name not in presets:
        raise ValueError(f"There is no preset called {name}: choose one of {', '.join(presets)}.")
    return presets[name]


def _checked(place: str, row: object) -> Preset:
    names = [field.name for field in fields(Preset)]
    row = row if isinstance(row, dict) else {}
    for name in row:
        if name not in names:
            raise ValueError(f"{place}, field {name}: there is no such field; the fields are {', '.join(names)}.")
    for name in names:
        if name not in row:
            raise ValueError(f"{place}, field {name}: it is missing.")
    for name, choices in CHOICES.items():
        if row[name] not in choices:
            raise ValueError(f"{place}, field {name}: {row[name]!r} is not one of {', '.join(choices)}.")
    timestep = row["timestep"]
    if type(timestep) is not int or not 0 <= timestep <= 999:
        raise ValueError(f"{place}, field timestep: {timestep!r} is not a whole number from 0 to 999.")
    return Preset(**row)
