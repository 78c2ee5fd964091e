"""What a preset is and what its fields may be: pydantic checks a row, and what is wrong with it becomes a sentence."""

import datetime
import difflib
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from ..quoting import as_written, listed
from .backbones import BACKBONES

LONGEST_NAME = 255
DIFFUSION_ONLY = ("levels", "alphas_cumprod", "output", "gamma", "noise", "follows_base", "spacing")
NUMBER = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True, allow_inf_nan=False)]


# The description of a field is what its value is not where a check fails.
def _number(low: float, high: float, kind: Any = NUMBER) -> Any:
    return Annotated[kind, Field(ge=low, le=high, description=f"a number from {low} to {high}")]


def _whole(low: int, high: int) -> Any:
    return _number(low, high, Annotated[int, Field(strict=True)])


def _one_of(*choices: str) -> Any:
    return Annotated[Literal[choices], Field(description=f"one of {', '.join(choices)}")]


def _list_of(kind: Any, description: str = "") -> Any:
    """A list, or one value without brackets. description: of an item."""
    several = BeforeValidator(lambda value: tuple(value) if isinstance(value, (list, tuple)) else (value,))
    return Annotated[tuple[kind, ...], several, Field(description=description)]


def _no_divisor(*values: float) -> AfterValidator:
    def check(value: float) -> float:
        if value in values:
            raise PydanticCustomError("zero", "would divide by zero")
        return value

    return AfterValidator(check)


def _file_name(value: str) -> str:
    if not 0 < len(value.strip("*-_. ")) <= LONGEST_NAME:
        raise ValueError
    return value


STRING = Annotated[str, Field(strict=True, description="text")]
DATE = Annotated[STRING, BeforeValidator(lambda value: str(value) if isinstance(value, datetime.date) else value)]
PATTERNS = _list_of(Annotated[str, Field(strict=True), AfterValidator(_file_name)], "the name of a file")
NUMBERS = _list_of(Any)  # looked at when it is known what the model predicts
SHIFTS = ("flux1", "flux2")


@dataclass(frozen=True)
class Preset:
    """One row; presets.yaml says what each field means. A field whose default is None may be left out, not be empty."""

    name: str
    prediction: _one_of("eps", "v", "x0", "flow-", "flow+")
    timesteps: NUMBERS
    follows_base: Annotated[bool, Field(strict=True, description="one of true, false")] = False
    model: STRING = ""
    backbones: _list_of(Literal[tuple(BACKBONES)], f"one of {', '.join(BACKBONES)}") = ()
    noise: _one_of("unit", "vp", "ipi") = "unit"
    levels: NUMBERS = ()
    image_starts: NUMBERS = ()
    alphas_cumprod: Annotated[_number(0, 1), _no_divisor(0, 1)] = None
    renoise: _one_of("none", "fresh") = "none"
    output: _one_of("x0", "tcd") = "x0"
    gamma: _number(0, 1) = 0.0
    channels: _whole(1, 4096) = None
    latent_scale: Annotated[_number(0, 100), _no_divisor(0)] = None
    resolution: _whole(1, 65536) = None
    alpha: _number(0, 2) = None
    cfg: _number(1, 100) = 1.0
    solver: _one_of("euler", "euler_ancestral", "res_multistep") = "euler"
    spacing: _one_of("trailing", "lcm") = "trailing"
    shift: Annotated[
        _number(0.01, 100) | Literal[SHIFTS], Field(description=f"a number from 0.01 to 100 or one of {listed(SHIFTS)}")
    ] = None
    stage: NUMBERS = ()
    strength: _number(0.01, 10) = 1.0
    files: PATTERNS = ()
    words: PATTERNS = ()
    folder: STRING = ""
    source: STRING = ""
    checked: DATE = ""

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


ROW = TypeAdapter(Preset)
FIELDS = {name: kind for name, kind in typing.get_type_hints(Preset, include_extras=True).items() if name != "name"}


def checked(name: str, row: dict[str, object], place: Callable[[str], str]) -> Preset:
    """The preset of a row. place(field): where that field stands, in words.

    Raises:
        ValueError: a field is unknown, missing or makes no sense; the sentence begins with its place.
    """
    for field, value in row.items():
        if field in FIELDS and value is None:
            raise ValueError(f"{place(field)}: it is empty.")
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            nearest = f"; the nearest is {near[0]}" if near else ""
            raise ValueError(f"{place(field)}: there is no such field; the fields are {', '.join(FIELDS)}{nearest}.")
    try:
        preset = ROW.validate_python(row | {"name": name})
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = next((one for one in found if one["type"] == "missing"), found[0])
        raise ValueError(f"{place(first['loc'][0])}: {_told(first)}.") from None
    for field, what in _contradictions(preset, row):
        raise ValueError(f"{place(field)}: {what}.")
    return preset


def changed(preset: Preset, place: str, **changes) -> Preset:
    """`preset` with other values, checked as a row of a table is.

    Raises:
        ValueError: a value makes no sense; the sentence begins with `place` and names the field.
    """
    row = {name: getattr(preset, name) for name in FIELDS}
    row = {name: value for name, value in row.items() if value not in (None, "", ()) and value is not False}
    if str(changes.get("prediction", preset.prediction)).startswith("flow"):
        row = {name: value for name, value in row.items() if name not in DIFFUSION_ONLY}
    else:
        row.pop("shift", None)
    return checked(preset.name, row | changes, lambda field: f"{place}, field {field}")


def _told(error: Any) -> str:
    """What one of pydantic's errors says of a field."""
    (field, *inside), value, kind = error["loc"], error["input"], error["type"]
    if kind == "missing":
        return "it is missing"
    if kind == "zero":
        return f"{as_written(value)} would divide by zero"
    if kind == "int_type" and not inside:
        return f"{as_written(value)} is not a whole number"
    described = (getattr(one, "description", None) for one in reversed(FIELDS[field].__metadata__))
    return f"{as_written(value)} is not {next(filter(None, described))}"


def _contradictions(preset: Preset, row: Collection[str]) -> Iterator[tuple[str, str]]:
    """The fields of `row` that do not go with others, and what is wrong with them."""
    steps = len(preset.timesteps)
    for field in ("timesteps", "levels", "image_starts"):
        if field in row and (what := _no_timesteps(getattr(preset, field), preset.is_flow)):
            yield field, what
    if "levels" in row and len(preset.levels) != steps:
        yield "levels", f"there are {len(preset.levels)}, but {steps} timesteps"
    if "shift" in row and not preset.is_flow:
        yield "shift", "only a flow model has one: leave it out"
    if "stage" in row and (what := _no_stage(preset.stage, steps)):
        yield "stage", what
    if preset.gamma and preset.renoise == "fresh":
        yield "gamma", "with renoise fresh all of the noise is new: leave one of the two out"
    for field in DIFFUSION_ONLY:
        if field in row and preset.is_flow:
            yield field, "a flow model has no such thing: leave it out"


def _no_stage(values: tuple, steps: int) -> str:
    """Why these are no stage of so many steps; "" if they are one."""
    if len(values) != 2 or any(type(value) is not int for value in values):
        return "it is not two whole numbers, the step where this stage begins and the one before which it ends"
    if not 0 <= values[0] < values[1] <= steps:
        return f"{listed(map(str, values))} are not steps of {steps}, the first below the second"
    return ""


def _no_timesteps(values: tuple, is_flow: bool) -> str:
    """Why these are no timesteps; "" if they are."""
    if not values:
        return "there are none"
    for value in values:
        if is_flow and not (type(value) in (int, float) and 0 < value <= 1000):
            return f"{as_written(value)} is not a number above 0 and up to 1000"
        if not is_flow and not (type(value) is int and 0 <= value <= 999):
            return f"{as_written(value)} is not a whole number from 0 to 999"
    if any(later >= earlier for earlier, later in zip(values, values[1:], strict=False)):
        return f"{listed(map(str, values))} do not fall from step to step"
    return ""
