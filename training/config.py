"""The one schema of a distillation run: YAML in, checked dataclasses out.

Defaults are those of the paper's Table 6 for SD 1.5; where no version of the paper says anything, those of the
nearby code by the same group (SwiftBrush v1, swiftcontrol), and the setting's description says so.
"""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import UserError

REQUIRED = dataclasses.MISSING


def setting(default: Any, description: str, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field with its description and the closed range that each of its numbers must lie in."""
    metadata = {"description": description, "low": low, "high": high}
    if isinstance(default, (type, types.FunctionType)):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the one-step student starts; saved in the exported file, because a sampler has to do the same."""

    timestep: int = setting(999, "timestep fed to the student (paper: the last one)", low=1, high=999)
    noise: Literal["unit", "vp"] = setting("unit", "input is z (unit) or sigma_t * z (vp); ComfyUI feeds unit at 999")


@dataclass(frozen=True, kw_only=True)
class Student:
    """The one-step network: all weights, fp32 masters."""

    learning_rate: float = setting(1e-6, "Table 6", low=1e-12, high=1.0)
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "AdamW betas (not in the paper; nearby code)", low=0, high=0.999999
    )
    weight_decay: float = setting(0.01, "AdamW weight decay (not in the paper; PyTorch's default)", low=0, high=10)
    ema_decay: float | None = setting(None, "average of the student's weights; none by default", low=0, high=0.999999)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The LoRA teacher, which follows the student's own output distribution."""

    rank: int = setting(64, "Table 6", low=1, high=4096)
    alpha: float = setting(128.0, "scaling gamma of Table 6; the adapter is scaled by alpha / rank", low=1e-6, high=1e6)
    targets: list[str] | Literal["all-linear-and-conv"] = setting(
        lambda: ["to_q", "to_v"], "layers that get an adapter (not in the paper; nearby code: to_q, to_v)"
    )
    learning_rate: float = setting(1e-3, "Table 6", low=1e-12, high=1.0)
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "AdamW betas (not in the paper; nearby code)", low=0, high=0.999999
    )
    weight_decay: float = setting(0.01, "AdamW weight decay (not in the paper; PyTorch's default)", low=0, high=10)
    updates: int = setting(1, "LoRA updates per student update (5 is DMD2's two time-scale rule)", low=1, high=1000)
    fresh: bool = setting(
        True, "updates after the first draw new noise and a new student sample, instead of reusing x0"
    )
    initial_steps: int = setting(0, "steps that train only the LoRA, before the first VSD step", low=0, high=10**7)
    timesteps: tuple[int, int] = setting((0, 999), "range of t, both ends included (nearby code)", low=0, high=999)
    weight: Literal["alpha_squared", "uniform"] = setting("alpha_squared", "weight of the eps error (nearby code)")
    null_probability: float = setting(
        0.1, "chance that the whole batch gets the null prompt (nearby code)", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class Vsd:
    """Variational score distillation."""

    timesteps: tuple[int, int] = setting((20, 980), "range of t, both ends included (nearby code)", low=0, high=999)
    weight: Literal["sigma_squared", "x0"] = setting("sigma_squared", "w(t) of the score difference (nearby code)")
    x0_weight_cap: float = setting(10.0, "largest w(t) when weight is x0", low=1e-6, high=1e6)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Before VSD: regress the student onto the teacher's own deterministic samples, noise by noise.

    Each pair is (z, x0), x0 being what the teacher's DDIM sampler makes of that very z (as in InstaFlow and DMD), so
    the student keeps its dependence on the noise, and with it diversity.
    """

    steps: int = setting(REQUIRED, "regression steps", low=1, high=10**7)
    learning_rate: float = setting(1e-5, "of the regression (AdamW .9, .999)", low=1e-12, high=1.0)
    sampler_steps: int = setting(25, "DDIM steps of the teacher", low=1, high=1000)
    guidance_scale: float = setting(3.0, "CFG scale of the teacher's sampler", low=0, high=100)
    pairs: int = setting(REQUIRED, "how many pairs to make; kept in the run folder", low=1, high=10**8)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. Every nested block may be left out; so may every key but the three without a default."""

    teacher: str = setting(REQUIRED, "a diffusers folder or hub name: unet, vae, text_encoder, tokenizer, scheduler")
    prompts: str = setting(REQUIRED, "prompt file, .txt (one a line) or .jsonl (key `prompt`)")
    output: str = setting(REQUIRED, "run folder")
    seed: int = setting(0, "decides every draw of the run", low=0, high=2**31 - 1)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto takes a GPU when there is one")
    mixed_precision: Literal["auto", "bf16", "no"] = setting("auto", "bf16 autocast; auto: on GPUs that have it")
    latent_size: tuple[int, int] | None = setting(
        None, "height, width in latents; else the UNet's own", low=1, high=1024
    )

    batch_size: int = setting(64, "Table 6", low=1, high=65536)
    steps: int = setting(60_000, "student updates by VSD; Table 6, SD 1.5", low=0, high=10**9)
    kappa: tuple[float, float] = setting(
        (0.5, 4.0), "range of the CFG scale, drawn once per step; Table 6", low=0, high=100
    )
    cfg_on: Literal["both", "teacher", "lora", "none"] = setting("both", "which score gets the scale (Table 2)")
    gradient_clip: float = setting(1.0, "largest gradient norm (nearby code)", low=1e-6, high=1e6)
    start: Start = setting(Start, "where the student starts")
    student: Student = setting(Student, "the student's optimiser")
    lora: Lora = setting(Lora, "the LoRA teacher")
    vsd: Vsd = setting(Vsd, "the distillation loss")
    warm_start: WarmStart | None = setting(None, "regression before VSD; none by default")

    checkpoint_every: int = setting(1000, "steps between checkpoints", low=1, high=10**9)
    keep_checkpoints: int = setting(2, "older ones are deleted", low=1, high=10**6)
    sample_every: int = setting(500, "steps between sample grids", low=1, high=10**9)
    sample_prompts: list[str] = setting(
        lambda: ["A photo of a person", "A photo of a pet", "A red car", "A bowl of fruit"], "rows of the sample grid"
    )
    samples_per_prompt: int = setting(8, "columns of the sample grid", low=2, high=64)
    log_every: int = setting(10, "steps between lines of metrics.jsonl", low=1, high=10**6)
    max_bad_steps: int = setting(20, "stop after so many updates skipped for NaN or Inf", low=0, high=10**9)
    text_cache_megabytes: int = setting(1024, "prompt lists whose embeddings fit are encoded once", low=0, high=10**6)

    @property
    def warm_steps(self) -> int:
        return self.warm_start.steps if self.warm_start else 0

    @property
    def total_steps(self) -> int:
        """Warm start, then LoRA only, then VSD: one count for all three."""
        return self.warm_steps + self.lora.initial_steps + self.steps


#: A resumed run may change these; everything else would make it another run.
FREE_TO_CHANGE = {
    "output",
    "steps",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_every",
    "log_every",
    "max_bad_steps",
}


def load(path: str | Path, output: str | None = None) -> Config:
    """Reads and checks a YAML file; `output` overrides the run folder. Raises UserError."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"Cannot read the config {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The config {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UserError(f"The config {path} must be a YAML mapping of settings, for example `batch_size: 64`.")
    return parse(content | ({"output": output} if output else {}), str(path))


def parse(content: dict, source: str = "config") -> Config:
    """A checked Config from plain YAML values. Raises UserError that names key, value and what is allowed."""
    config = _block(Config, content, source, "")
    ranges = {"kappa": config.kappa, "vsd.timesteps": config.vsd.timesteps, "lora.timesteps": config.lora.timesteps}
    for key, bounds in ranges.items():
        if bounds[0] > bounds[1]:
            raise UserError(f"{source}: {key} is {list(bounds)}; write the smaller number first.")
    if not config.sample_prompts:
        raise UserError(f"{source}: sample_prompts is empty; give at least one prompt.")
    return config


def to_dict(config: Config) -> dict:
    """Plain values, as `parse` reads them."""
    return yaml.safe_load(yaml.safe_dump(_plain(dataclasses.asdict(config))))


def differences(old: Config, new: Config) -> list[str]:
    """Sentences such as "lora.rank was 64 and is 32", for every setting that a resumed run may not change."""

    def flat(value: dict, prefix: str = "") -> dict:
        pairs = {}
        for key, inner in value.items():
            pairs |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
        return pairs

    before, after = flat(to_dict(old)), flat(to_dict(new))
    keys = [key for key in before | after if key not in FREE_TO_CHANGE and before.get(key) != after.get(key)]
    return [f"{key} was {before.get(key)} and is {after.get(key)}" for key in keys]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value


def _block(schema: type, content: Any, source: str, prefix: str) -> Any:
    if not isinstance(content, dict):
        raise UserError(f"{source}: {prefix.rstrip('.')} is {content!r}; it must be a mapping of settings.")
    fields = {field.name: field for field in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in content:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are: {', '.join(fields)}."
            raise UserError(f"{source}: there is no setting `{prefix}{key}`; {hint}")
    values = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _value(hints[name], content[name], field.metadata, source, prefix + name)
        elif field.default is REQUIRED and field.default_factory is REQUIRED:
            raise UserError(f"{source}: `{prefix}{name}` is missing; it is the {field.metadata['description']}.")
    return schema(**values)


def _value(kind: Any, value: Any, limits: Any, source: str, key: str) -> Any:
    """`value` as `kind`, or UserError. YAML reads 1e-6 as a string, so strings that are numbers count as numbers."""

    def refuse(allowed: str) -> typing.NoReturn:
        raise UserError(f"{source}: {key} is {value!r}; allowed is {allowed}.")

    if dataclasses.is_dataclass(kind):
        return _block(kind, value, source, key + ".")
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in choices:
            return None
        choices = [choice for choice in choices if choice is not type(None)]
        if len(choices) == 2:  # list[str] or one word
            return _value(choices[0 if isinstance(value, list) else 1], value, limits, source, key)
        return _value(choices[0], value, limits, source, key)
    if origin is Literal:
        if isinstance(value, bool) and "no" in choices:  # YAML 1.1 reads a bare `no` as false
            value = "no" if value is False else value
        return value if value in choices else refuse("one of " + ", ".join(choices))
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(choices):
            refuse(f"a list of {len(choices)} numbers")
        return tuple(_value(inner, item, limits, source, key) for inner, item in zip(choices, value, strict=True))
    if origin is list:
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            refuse("a list of words, at least one")
        return list(value)
    if kind is str:
        return value if isinstance(value, str) and value.strip() else refuse("a text that is not empty")
    if kind is bool:
        return value if isinstance(value, bool) else refuse("true or false")
    low, high = limits["low"], limits["high"]
    allowed = f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"
    try:
        number = kind(value) if not isinstance(value, bool) else refuse(allowed)
    except (TypeError, ValueError, OverflowError):
        refuse(allowed)
    if not low <= number <= high or (kind is int and number != float(value)):
        refuse(allowed)
    return number
