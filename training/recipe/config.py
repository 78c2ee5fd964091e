"""The one schema of a distillation run: YAML in, a checked Config out.

Defaults are those of the paper's Table 6 for SD 1.5; where no version of the paper says anything, those of the
nearby code by the same group (SwiftBrush v1, swiftcontrol), and the setting's description says so.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ..errors import UserError, quoted, quoted_value
from .schema import REQUIRED, TOGETHER, Block, Name, Number, Text, Truth, Whole, Words, block, pair, setting, span
from .shipped import shipped
from .yaml_file import read_settings, read_value

MOST_PICTURES = 1024  # of a sample grid
MOST_STEPS = 8  # of a student


#: How a learning rate goes on once it is warmed up.
Schedule = Literal["constant", "linear", "cosine"]


def _no(value: Any) -> Any:
    return "no" if value is False else value  # YAML 1.1 reads a bare `no` as false


class Start(Block):
    """Where the student starts, and its steps; saved in the exported file, because a sampler has to do the same."""

    timestep: Whole = setting(
        999, "timestep fed to the student (paper: the last one); of a flow model thousandths of t", low=1, high=999
    )
    noise: Literal["unit", "vp"] = setting(
        "unit", "input is z (unit) or sigma_t * z (vp; a flow model's t * z); ComfyUI feeds unit at 999"
    )
    steps: Whole = setting(
        1,
        "steps of the student; each after the first gets the picture before it with fresh noise, in training its own "
        "(DMD2's backward simulation; the paper: 1)",
        low=1,
        high=MOST_STEPS,
    )
    later: Annotated[list[Annotated[Whole, Field(ge=1, le=998)]], Field(min_length=1)] | None = setting(
        None, "timesteps of the steps after the first; null: in even parts of it, as 749, 499, 249 of 999 (DMD2's own)"
    )

    @property
    def timesteps(self) -> tuple[int, ...]:
        """What the student is told at each step, falling."""
        even = [self.timestep * (self.steps - step) // self.steps for step in range(1, self.steps)]
        return (self.timestep, *(even if self.later is None else self.later))

    @model_validator(mode="after")
    def _falls(self) -> "Start":
        steps, later, listed = self.steps, self.later, self.timesteps
        if later and len(later) != steps - 1:
            fitting = f"write `steps: {len(listed)}`, or " if len(listed) <= MOST_STEPS else ""
            raise PydanticCustomError(
                TOGETHER,
                f"start.later is {quoted_value(later)}, so there are {len(listed)} steps with the first, and "
                f"start.steps is {steps}; {fitting}leave `later` out",
            )
        if listed[-1] < 1 or any(following >= before for before, following in itertools.pairwise(listed)):
            why = "do not fall from step to step" if later else f"are no {steps} steps above 0"
            raise PydanticCustomError(
                TOGETHER,
                f"start.timestep and the later ones are {quoted_value(list(listed))}, which {why}; "
                + ("write each smaller than the one before" if later else "start later, or with fewer steps"),
            )
        return self

    def moved(self, place: str, timestep: int | None, noise: str | None) -> "Start":
        """With another first step, where one is given; the later ones are then in even parts of its timestep.

        Raises UserError that begins with `place`.
        """
        given = {} if timestep is None else {"timestep": timestep, "later": None}
        given |= {} if noise is None else {"noise": noise}
        return block(Start, self.model_dump() | given, lambda key: place)


class Adapter(Block):
    """A student that is a LoRA over the teacher: a small file that also patches community checkpoints."""

    rank: Whole = setting(64, "as the LoRA teacher's (not in the paper)", low=1, high=4096)
    alpha: Number = setting(64.0, "the adapter is scaled by alpha / rank", low=1e-6, high=1e6)
    targets: Words | Literal["all-linear-and-conv"] = setting(
        lambda: ["to_q", "to_k", "to_v", "to_out.0"], "layers that get an adapter"
    )
    init: Literal["gaussian", "kaiming"] = setting("gaussian", "first weights of lora_A; lora_B starts at zero")


class Student(Block):
    """The one-step network, fp32 masters: all weights, or a LoRA."""

    lora: Adapter | None = setting(None, "train a LoRA over the teacher instead of all weights")
    start_from: Name | None = setting(
        None,
        "another network of the teacher's layers to start from; null: the teacher. SD 2.1: SD-Turbo (SwiftBrush v2)",
    )
    learning_rate: Number = setting(1e-6, "Table 6; a resumed run may change it", low=1e-12, high=1.0)
    schedule: Schedule = setting("constant", "of that rate in distillation; linear and cosine fall to 0 at its end")
    warmup_steps: Whole = setting(0, "steps in which the rate rises from 0, before the schedule", low=0, high=10**7)
    betas: pair(Number, 0, 0.999999) = setting((0.9, 0.999), "AdamW betas (not in the paper; nearby code)")
    weight_decay: Number = setting(0.0, "AdamW weight decay (not in the paper; nearby code: 0)", low=0, high=10)
    ema_decay: Number | None = setting(
        0.9999,
        "average of the student's weights, 4 bytes each; null: none (not in the paper; on in SwiftBrush's command)",
        low=0,
        high=0.999999,
    )
    ema_ramp: Truth = setting(
        True,
        "the n-th update takes at most (1 + n) / (10 + n) as decay, so that a short run's average is not its start "
        "(nearby code: diffusers' EMAModel)",
    )
    ema_device: Literal["same", "cpu"] = setting(
        "same", "cpu saves 4 bytes a weight of GPU memory, costs a copy a step"
    )
    shard: Truth = setting(
        False, "split weights, gradients and optimiser states over the processes (FSDP) instead of copying them (DDP)"
    )


class Lora(Block):
    """The LoRA teacher, which follows the student's own output distribution."""

    rank: Whole = setting(64, "Table 6", low=1, high=4096)
    alpha: Number = setting(128.0, "gamma of Table 6; the adapter is scaled by alpha / rank", low=1e-6, high=1e6)
    targets: Words | Literal["all-linear-and-conv"] = setting(
        lambda: ["to_q", "to_v"], "layers that get an adapter (not in the paper; nearby code: to_q, to_v)"
    )
    init: Literal["gaussian", "kaiming"] = setting("gaussian", "first weights of lora_A (nearby code)")
    learning_rate: Number = setting(1e-3, "Table 6; a resumed run may change it", low=1e-12, high=1.0)
    schedule: Schedule = setting("constant", "of that rate, as the student's, from the LoRA's first step on")
    warmup_steps: Whole = setting(0, "steps in which the rate rises from 0, before the schedule", low=0, high=10**7)
    betas: pair(Number, 0, 0.999999) = setting((0.9, 0.999), "AdamW betas (not in the paper; nearby code)")
    weight_decay: Number = setting(
        0.0,
        "AdamW weight decay (not in the paper; nearby code: 0. At 1e-3, 0.01 takes 45% of a weight in 60,000 updates)",
        low=0,
        high=10,
    )
    updates: Whole = setting(1, "LoRA updates per student update (5 is DMD2's two time-scale rule)", low=1, high=1000)
    fresh: Truth = setting(
        True, "updates after the first draw new noise and a new student sample, instead of reusing x0 (DMD2)"
    )
    fresh_prompts: Truth = setting(True, "these samples are of new prompts and negative prompts too (DMD2)")
    initial_steps: Whole = setting(0, "steps that train only the LoRA, before the first VSD step", low=0, high=10**7)
    timesteps: span(Whole, 0, 999) = setting((0, 999), "range of t, both ends included (nearby code)")
    weight: Literal["alpha_squared", "uniform", "velocity"] = setting(
        "alpha_squared", "weight of the eps error (nearby code); a flow model wants velocity, the plain error of v"
    )
    null_probability: Number = setting(
        0.1, "chance that the whole batch gets the null prompt (nearby code)", low=0, high=1
    )


class Vsd(Block):
    """Variational score distillation."""

    timesteps: span(Whole, 0, 999) = setting((20, 980), "range of t, both ends included (nearby code)")
    timesteps_lora: span(Whole, 0, 999) | None = setting(
        None,
        "range of a t of its own for the LoRA teacher's score, both ends included (not in the paper; Decoupled DMD); "
        "null: the frozen teacher's t",
    )
    weight: Literal["sigma_squared", "x0"] = setting("sigma_squared", "w(t) of the score difference (nearby code)")
    x0_weight_cap: Number = setting(10.0, "largest w(t) when weight is x0", low=1e-6, high=1e6)


class Clip(Block):
    """The clamped CLIP loss, on pictures that a small autoencoder decodes. Weight and margin: Table 6."""

    weight: Number = setting(0.1, "at the first VSD step; Table 6", low=0, high=1e6)
    final_weight: Number = setting(
        1.4e-4,
        "where it ends, falling by a constant factor a step (nearby code: weight * .0014^(t / steps); the paper's v3: "
        "0.1 to 0, without the curve); 0: falls linearly",
        low=0,
        high=1e6,
    )
    margin: Number = setting(
        0.37, "tau: a picture closer to its prompt than this costs nothing; Table 6", low=-1, high=1
    )
    model: Name = setting(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "CLIP, a folder or hub name in transformers' layout; the margin belongs to it (nearby code: open_clip's "
        "ViT-B-32, laion2b_s34b_b79k, which is this one)",
    )
    decoder: Name | None = setting(
        "madebyollin/taesd", "tiny autoencoder, local folder or hub name; null decodes by the teacher's own"
    )
    one_in: Whole = setting(
        8, "one sample in so many gets this loss (paper: part of the batch; nearby code: 8)", low=1, high=65536
    )


class Nasa(Block):
    """NASA-T: a negative prompt replaces the null prompt in the frozen teacher's CFG and steers the student by NASA.

    The LoRA teacher keeps the null prompt.
    """

    prompts: Name = setting("training/configs/negative_prompts.txt", "negative prompts, read as `prompts` is")
    alpha: span(Number, 0, 10) = setting((0.0, 1.0), "range of the strength, drawn once per step (paper, v3)")


class WarmStart(Block):
    """Before VSD: regress the student onto the teacher's own deterministic samples, noise by noise.

    Each pair is (z, x0), x0 being what the teacher's DDIM sampler makes of that very z (as in InstaFlow and DMD), so
    the student keeps its dependence on the noise, and with it diversity.
    """

    steps: Whole = setting(REQUIRED, "regression steps", low=1, high=10**7)
    learning_rate: Number = setting(1e-5, "of the regression (AdamW .9, .999)", low=1e-12, high=1.0)
    sampler_steps: Whole = setting(25, "DDIM steps of the teacher", low=1, high=1000)
    guidance_scale: Number = setting(3.0, "CFG scale of the teacher's sampler", low=0, high=100)
    pairs: Whole = setting(REQUIRED, "how many pairs to make; kept in the run folder", low=1, high=10**8)


class Config(Block):
    """One run. Every nested block may be left out; so may every key but the three without a default."""

    backbone: Name = setting("stable_diffusion", "the file in training/networks/backbones that knows this teacher")
    teacher: Name = setting(REQUIRED, "teacher: a diffusers folder, a hub name, or a single .safetensors file")
    teacher_parts: Name | None = setting(
        None,
        "diffusers folder or hub name of what a single-file teacher leaves out; null: the backbone's own base model",
    )
    prompts: Name = setting(REQUIRED, "a .txt (one prompt a line), .jsonl or .parquet file, or datasets://OWNER/NAME")
    prompt_column: Name | None = setting(None, "key or column of the prompts; null: prompt, caption or text")
    skip_bad_prompts: Truth = setting(False, "leave out empty and huge prompts instead of refusing the file")
    output: Name = setting(REQUIRED, "run folder")
    seed: Whole = setting(0, "decides every draw of the run", low=0, high=2**31 - 1)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto takes a GPU when there is one")
    mixed_precision: Annotated[Literal["auto", "bf16", "no"], BeforeValidator(_no)] = setting(
        "auto", "bf16 autocast; auto: on GPUs that have it"
    )
    gradient_checkpointing: Truth = setting(False, "compute activations twice instead of keeping them")
    micro_batch: Whole | None = setting(
        None, "samples that one process computes at once; null: its whole share of the batch", low=1, high=65536
    )
    optimizer: Literal["adamw", "adamw_8bit"] = setting("adamw", "adamw_8bit keeps 2 instead of 8 bytes a weight")
    latent_size: pair(Whole, 1, 1024) | None = setting(None, "height, width in latents; else the UNet's own")

    batch_size: Whole = setting(64, "of all processes together; Table 6", low=1, high=65536)
    steps: Whole = setting(60_000, "student updates by VSD; Table 6, SD 1.5", low=0, high=10**9)
    kappa: span(Number, 0, 100) = setting((0.5, 4.0), "range of the CFG scale, drawn once per step; Table 6")
    kappa_lora: span(Number, 0, 100) | None = setting(
        None,
        "range of a CFG scale of its own for the LoRA teacher's score (not in the paper; Decoupled DMD); null: the "
        "scale that the frozen teacher gets. Another mean than kappa's pulls the two scores apart",
    )
    kappa_per: Literal["batch", "sample"] = setting("batch", "one scale a step, or one a sample (nearby code: batch)")
    cfg_on: Literal["both", "teacher", "lora", "none"] = setting("both", "which score gets the random scale (Table 2)")
    fixed_kappa: Number = setting(
        1.0,
        "scale of a score that cfg_on leaves out; 1 is no guidance. With teacher or lora take the mean of kappa: "
        "another scale pulls the two scores apart, and the student off",
        low=0,
        high=100,
    )
    null_prompt: Text = setting("", "the null prompt of CFG (nearby code: the empty string)")
    gradient_clip: Number = setting(1.0, "largest gradient norm (nearby code)", low=1e-6, high=1e6)
    start: Start = setting(Start, "where the student starts")
    student: Student = setting(Student, "the student's optimiser")
    lora: Lora = setting(Lora, "the LoRA teacher")
    vsd: Vsd = setting(Vsd, "the distillation loss")
    clip: Clip | None = setting(None, "the clamped CLIP loss; none by default")
    nasa: Nasa | None = setting(None, "training with NASA (NASA-T); none by default")
    warm_start: WarmStart | None = setting(None, "regression before VSD; none by default")

    checkpoint_every: Whole = setting(1000, "steps between checkpoints", low=1, high=10**9)
    keep_checkpoints: Whole = setting(2, "older ones are deleted", low=1, high=10**6)
    sample_every: Whole = setting(500, "steps between sample grids", low=1, high=10**9)
    sample_prompts: Words = setting(
        lambda: ["A photo of a person", "A photo of a pet", "A red car", "A bowl of fruit"], "rows of the sample grid"
    )
    samples_per_prompt: Whole = setting(8, "columns of the sample grid", low=2, high=64)
    log_every: Whole = setting(10, "steps between lines of metrics.jsonl", low=1, high=10**6)
    tracker: Name | None = setting(None, "tensorboard, or any other tracker that accelerate knows; null: none")
    max_bad_steps: Whole = setting(
        20, "stop after so many updates skipped for NaN or Inf (nearby code zeroes NaN and goes on)", low=0, high=10**9
    )
    encoded_prompts: Name | None = setting(
        None, "folder that `python -m training encode` wrote; null: encode on the fly"
    )
    text_cache_megabytes: Whole = setting(1024, "prompt lists whose embeddings fit are encoded once", low=0, high=10**6)

    @property
    def warm_steps(self) -> int:
        return self.warm_start.steps if self.warm_start else 0

    @property
    def total_steps(self) -> int:
        """Warm start, then LoRA only, then VSD: one count for all three."""
        return self.warm_steps + self.lora.initial_steps + self.steps

    @property
    def trained_in(self) -> dict[str, range]:
        """{role: the steps of distillation in which it is trained}."""
        first = {"lora": self.warm_steps, "student": self.warm_steps + self.lora.initial_steps}
        return {role: range(step, self.total_steps) for role, step in first.items()}

    @property
    def samples(self) -> int:
        """How many prompts a run takes from its list; the warm start has pairs of its own."""
        return self.batch_size * (self.lora.initial_steps + self.steps)


#: A resumed run may change these, and says so.
RATES = {
    "student.learning_rate", "student.schedule", "student.warmup_steps",
    "lora.learning_rate", "lora.schedule", "lora.warmup_steps", "warm_start.learning_rate",
}  # fmt: skip
#: These too, without a word; everything else would make it another run.
FREE_TO_CHANGE = {
    "output",
    "steps",
    "device",
    "micro_batch",
    "gradient_checkpointing",
    "student.ema_device",
    "student.shard",
    "tracker",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_every",
    "sample_prompts",
    "samples_per_prompt",
    "log_every",
    "max_bad_steps",
    "text_cache_megabytes",
}
#: Where things lie, and how they are read: a resumed run compares the contents (made_of.py).
COMPARED_BY_CONTENTS = {
    "prompts",
    "prompt_column",
    "skip_bad_prompts",
    "teacher",
    "teacher_parts",
    "student.start_from",
    "clip.model",
    "clip.decoder",
    "nasa.prompts",
}


def load(path: str | Path, output: str | None = None, changes: Sequence[str] = ()) -> Config:
    """Reads and checks a YAML file; `output` overrides the run folder. Raises UserError.

    `extends: OTHER.yaml`, relative to the file, takes every setting that the file itself leaves out from the other.
    changes: "lora.rank=32" and the like, from the command line; they come last.
    """
    content, places = _read(shipped(path), ())
    for change in changes:
        key, value = change_of(change)
        put(content, key, value)
        for end in range(1, len(key)):  # blocks that the file does not have
            places.setdefault(".".join(key[:end]), f"--set {quoted(change)}")
        places[".".join(key)] = f"--set {quoted(change)}"
    if output:
        content, places["output"] = content | {"output": output}, "--output"
    return parse(content, str(path), places)


def _read(path: Path, below: tuple[Path, ...]) -> tuple[dict, dict[str, str]]:
    """The settings of a file and of what it extends, and where each stands."""
    content, lines = read_settings(path)
    places = {key: f"{quoted(path)}, line {line}" for key, line in lines.items()}
    if (other := content.pop("extends", None)) is None:
        return content, places
    if not isinstance(other, str) or path.resolve() in below:
        raise UserError(
            f"{quoted(path)}: extends is {quoted_value(other)}; name one other config file, and no circle of them."
        )
    base, base_places = _read(path.parent / other, (*below, path.resolve()))
    return _merged(base, content), base_places | places


def _merged(base: dict, over: dict) -> dict:
    merged = base | over
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            merged[key] = _merged(base[key], over[key])
    return merged


def change_of(text: str) -> tuple[list[str], Any]:
    """A KEY=VALUE of --set: the parts of its key, and the value. Raises UserError."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {quoted(text)}: write a setting and its value, as in --set lora.rank=32.")
    return key.split("."), read_value(value, f"--set {quoted(text)}")


def put(content: dict, keys: Sequence[str], value: Any) -> None:
    """Puts it into the plain values of a file."""
    for key in keys[:-1]:
        if content.get(key) is None:
            content[key] = {}
        content = content[key]
        if not isinstance(content, dict):
            return  # told when the block is checked
    content[keys[-1]] = value


def parse(content: dict, source: str = "config", places: Mapping[str, str] | None = None) -> Config:
    """A checked Config from plain YAML values. Raises UserError that names key, value and what is allowed.

    places: where a setting stands, in words; what is not in there stands in `source`.
    """

    def where(key: str) -> str:
        while key and key not in (places or {}):
            key = key.rpartition(".")[0]
        return places[key] if key else quoted(source)

    config = block(Config, content, where)
    if config.micro_batch and config.batch_size % config.micro_batch:
        raise UserError(
            f"{where('batch_size')}: batch_size is {config.batch_size}; it must be a multiple of micro_batch, "
            f"{config.micro_batch}."
        )
    if (pictures := len(config.sample_prompts) * config.samples_per_prompt) > MOST_PICTURES:
        raise UserError(
            f"{where('sample_prompts')}: sample_prompts times samples_per_prompt are {pictures} pictures; a grid holds "
            f"{MOST_PICTURES}."
        )
    if config.kappa_lora and config.cfg_on in ("teacher", "none"):
        raise UserError(
            f"{where('kappa_lora')}: kappa_lora is {list(config.kappa_lora)}, but with cfg_on {config.cfg_on} the LoRA "
            f"teacher gets fixed_kappa; leave one of the two out."
        )
    for role, steps in config.trained_in.items():
        if (warmup := getattr(config, role).warmup_steps) > len(steps):
            raise UserError(
                f"{where(f'{role}.warmup_steps')}: {role}.warmup_steps is {warmup}; the {role} is trained for "
                f"{len(steps)} steps, give fewer."
            )
    if not config.total_steps:
        raise UserError(f"{where('steps')}: steps is 0 and there is no warm start; nothing would be trained.")
    return config


def to_dict(config: Config) -> dict:
    """Plain values, as `parse` reads them."""
    return config.model_dump(mode="json")


def digest(config: Config) -> str:
    """SHA-256 of all settings, hexadecimal."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def flat(config: Config) -> Iterator[tuple[str, Any]]:
    """("lora.rank", 64) and so on, for every setting."""

    def inside(value: dict, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            if isinstance(inner, dict):
                yield from inside(inner, f"{prefix}{key}.")
            else:
                yield prefix + key, inner

    return inside(to_dict(config), "")


def differences(old: Config, new: Config, by_contents: bool = False) -> list[str]:
    """Sentences such as "lora.rank was 64 and is 32", for every setting that a resumed run may not change.

    by_contents: what the settings in COMPARED_BY_CONTENTS name is compared elsewhere.
    """
    free = FREE_TO_CHANGE | RATES | (COMPARED_BY_CONTENTS if by_contents else set())
    if old.encoded_prompts and new.encoded_prompts:
        free = free | {"encoded_prompts"}  # wherever they lie, they say what they were encoded from
    return _changed(old, new, lambda key: key not in free)


def changed_rates(old: Config, new: Config) -> list[str]:
    """The same for what a resumed run may change of its learning rates."""
    return _changed(old, new, RATES.__contains__)


def _changed(old: Config, new: Config, asked: Callable[[str], bool]) -> list[str]:
    before, after = dict(flat(old)), dict(flat(new))
    keys = [key for key in before | after if asked(key) and before.get(key) != after.get(key)]
    return [f"{key} was {quoted(before.get(key))} and is {quoted(after.get(key))}" for key in keys]
