"""A recipe: prompt set, variants of models, scores, the figures to print beside ours. YAML in, a checked Recipe out.

training/evaluate/recipes/NAME.yaml     those that come with the trainer, named by NAME alone
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import UserError, quoted, quoted_value
from ..networks.backbones.sources import is_hub_name
from ..recipe.config import change_of, put
from ..recipe.schema import REQUIRED, Block, Name, Number, Whole, block, setting
from ..recipe.yaml_file import read_settings

FOLDER = Path(__file__).with_name("recipes")
SCORES = ("fid", "kid", "precision_recall", "cmmd", "alignment", "removal", "kept", "harm", "diversity")
LOCAL_FOLDERS = ("runs", "models", "build", "evaluation")
KEYS = ("title", "prompts", "size", "batch", "models", "variants", "scores", "paper", "tolerance", "order", "plot")


class Prompts(Block):
    """The prompt set."""

    source: Name = setting(
        REQUIRED,
        "a .txt, .jsonl, .parquet or .json file (a list of texts), datasets://OWNER/NAME, or a folder of such files, "
        "each a group",
    )
    where: Name | None = setting(None, "where people get it, for --dry-run")
    group: Name | None = setting(None, "key or column that says to which group (pair, style) a prompt belongs")
    negative: Name | None = setting(None, "key or column of the negative prompt")
    contrast: Name | None = setting(None, "key or column of what a judge is to tell the unwanted thing from")
    id: Name | None = setting(None, "key or column of the ids; null: the place in the list, as in 00017")
    count: Whole | None = setting(None, "how many prompts; null: all", low=1, high=10**8)
    draw_seed: Whole | None = setting(None, "draw them at random by this seed; null: the first", low=0, high=2**31 - 1)
    each: Whole = setting(1, "pictures a prompt", low=1, high=10**6)


class Variant(Block):
    """How one row of the table is drawn."""

    model: Name = setting(REQUIRED, "one of the recipe's models")
    steps: Whole = setting(1, "1: from the model's own start, in all steps that a student has", low=1, high=1000)
    sampler: Literal["ddim", "renoise"] = setting(
        "ddim", "for more steps: DDIM with guidance (a teacher), or x0 with new noise each time (a few-step student)"
    )
    guidance: Number = setting(1.0, "CFG scale; 1 is none", low=0, high=100)
    guidance_to: Number | None = setting(
        None, "the scale is drawn from guidance to this, one a picture", low=0, high=100
    )
    negative: Literal["none", "nasa", "cfg", "embedding"] = setting(
        "none", "what becomes of the negative prompt: nothing; NASA; CFG's other half; subtracted from the embedding"
    )
    alpha: Number = setting(0.0, "strength of nasa and embedding", low=0, high=100)
    negative_prompt: Name | None = setting(None, "one for all pictures, instead of the prompt set's own")
    timestep: Whole | None = setting(None, "start of the one step, instead of the model's own", low=1, high=999)
    noise: Literal["unit", "vp"] | None = setting(None, "first-step noise, instead of the model's own")
    seed: Whole = setting(0, "of the noise; a picture's noise depends on it and on the id alone", low=0, high=2**31 - 1)


class Plot(Block):
    """Curves, drawn by matplotlib."""

    x: Name = setting(REQUIRED, "a setting of the variants, such as alpha or guidance, or `step` (--watch)")
    y: Name = setting(REQUIRED, "a score")


class Model(Block):
    """What a variant draws with."""

    path: Name = setting(REQUIRED, "run, checkpoint or diffusers folder, exported file, hub name, folder of pictures")
    teacher: Name | None = setting(None, "diffusers folder or hub name of the other parts of an exported file")
    backbone: Name | None = setting(None, "of a teacher or foreign file: stable_diffusion or pixart")
    pictures: Literal["here", "elsewhere"] = setting(
        "here", "elsewhere: this trainer cannot draw with it; `path` is a folder of pictures named ID.png"
    )
    where: Name | None = setting(None, "where people get it, for --dry-run")

    @property
    def is_missing(self) -> bool:
        """Whether it is neither here nor to be fetched from a hub; runs/sd15 looks like a hub name and is none."""
        local = self.pictures == "elsewhere" or self.path.partition("/")[0] in LOCAL_FOLDERS
        return not Path(self.path).exists() and (local or not is_hub_name(self.path))


class Basics(Block):
    """Settings of the recipe itself."""

    title: Name = setting(REQUIRED, "what is evaluated")
    size: Whole | None = setting(
        None, "pictures are cropped to a square and brought to this side (Lanczos); null: as drawn", low=8, high=8192
    )
    batch: Whole = setting(8, "pictures drawn at once; other sizes round differently", low=1, high=65536)
    paper: Name | None = setting(None, "which table or figure its figures are from")


@dataclass(frozen=True)
class Recipe:
    """figures: {variant: {score: the paper's}}. tolerance: {score: how far ours may be off}. order: scores of which
    only the order of the variants is compared."""

    name: str
    basics: Basics
    prompts: Prompts
    models: dict[str, Model]
    variants: dict[str, Variant]
    scores: dict[str, Block]
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    plot: Plot | None = None
    folder: Path = Path()  # what the prompt file is relative to, where it is not in the working folder

    def with_models(self, given: Sequence[str]) -> "Recipe":
        """given: ROLE=PATH, or PATH for the roles in their order. Raises UserError."""
        models, bare = dict(self.models), list(self.models)
        for text in given:
            role, equals, path = text.partition("=")
            unnamed = not equals or role not in models
            if unnamed and not bare:
                raise UserError(
                    f"{quoted(text)} is one model too many: the recipe {quoted(self.name)} takes {len(models)} "
                    f"({', '.join(models)})."
                )
            if unnamed:
                role, path = bare[0], text
            if role in bare:
                bare.remove(role)
            models[role] = models[role].model_copy(update={"path": path})
        return replace(self, models=models)

    def only(self, names: Sequence[str]) -> "Recipe":
        """With these variants alone. Raises UserError."""
        if unknown := [name for name in names if name not in self.variants]:
            raise UserError(
                f"--only: the recipe {quoted(self.name)} has no variant {quoted(unknown[0])}; it has "
                f"{quoted(', '.join(self.variants))}."
            )
        return replace(self, variants={name: self.variants[name] for name in names}) if names else self


def known_recipes() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """By its NAME among those that come with the trainer, or from a .yaml file. changes: "prompts.count=100" and the
    like. Raises UserError."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in known_recipes():
            known = ", ".join(known_recipes())
            raise UserError(f"There is no recipe {quoted(name)}; known are {known}, or a .yaml file.")
        path = FOLDER / f"{name}.yaml"
    content, lines = read_settings(path)
    places = {key: f"{quoted(path)}, line {line}" for key, line in lines.items()}
    for change in changes:
        key, value = change_of(change)
        put(content, key, value)
        places[".".join(key)] = f"--set {quoted(change)}"
    return _parse(content, path, places)


def _parse(content: dict[str, Any], path: Path, places: Mapping[str, str]) -> Recipe:
    def where(key: str) -> str:
        while key and key not in places:
            key = key.rpartition(".")[0]
        return places[key] if key else quoted(path)

    def mapping(key: str, of: dict[str, Any] | None = None, prefix: str = "") -> dict[str, Any]:
        found = (content if of is None else of).pop(key, None)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise UserError(f"{where(prefix + key)}: {prefix}{key} is {quoted_value(found)}; it must be a mapping.")
        return found

    def read(schema: type[Block], values: Any, prefix: str) -> Any:
        if not isinstance(values, dict):
            raise UserError(f"{where(prefix)}: {prefix} is {quoted_value(values)}; it must be a mapping of settings.")
        return block(schema, values, lambda key: where(f"{prefix}.{key}"), prefix + ".")

    def numbers(values: dict[str, Any], prefix: str) -> dict[str, float]:
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                place = where(f"{prefix}.{name}")
                raise UserError(f"{place}: {prefix}.{quoted(name)} is {quoted_value(value)}; write a number.")
        return {name: float(value) for name, value in values.items()}

    if unknown := [key for key in content if key not in KEYS]:
        raise UserError(f"{where(unknown[0])}: a recipe has no `{quoted(unknown[0])}`; known are: {', '.join(KEYS)}.")
    prompts = read(Prompts, mapping("prompts"), "prompts")
    models = {
        role: read(Model, {"path": values} if isinstance(values, str) else values, f"models.{role}")
        for role, values in mapping("models").items()
    }
    variants, figures = {}, {}
    for name, values in mapping("variants").items():
        prefix = f"variants.{name}"
        if not _is_safe(name):
            raise UserError(f"{where(prefix)}: a variant's name is a folder's; use letters, digits, . _ and -.")
        if isinstance(values, dict):
            figures[name] = numbers(mapping("paper", values, prefix + "."), prefix + ".paper")
        variants[name] = read(Variant, values, prefix)
        _check_variant(variants[name], models, prefix, where)
    if not variants:
        raise UserError(f"{quoted(path)}: a recipe needs at least one entry in `variants`.")
    scores = {name: _score(name, values, where) for name, values in mapping("scores").items()}
    if not scores:
        raise UserError(f"{quoted(path)}: a recipe needs at least one entry in `scores`.")
    tolerance = numbers(mapping("tolerance"), "tolerance")
    order = content.pop("order", None) or []
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise UserError(f"{where('order')}: order is {quoted_value(order)}; it must be a list of scores.")
    plot = read(Plot, mapping("plot"), "plot") if content.get("plot") else None
    content.pop("plot", None)
    return Recipe(
        path.stem, block(Basics, content, where), prompts, models, variants, scores, figures, tolerance, tuple(order),
        plot, path.parent,
    )  # fmt: skip


def _check_variant(variant: Variant, models: dict[str, Model], prefix: str, where: Callable[[str], str]) -> None:
    if variant.model not in models:
        raise UserError(
            f"{where(f'{prefix}.model')}: {prefix}.model is {quoted_value(variant.model)}; the recipe's models are "
            f"{quoted(', '.join(models))}."
        )
    guided = variant.guidance != 1 or variant.guidance_to is not None
    if variant.negative == "nasa" and variant.steps > 1 and guided and variant.sampler == "ddim":
        raise UserError(
            f"{where(f'{prefix}.guidance')}: {prefix} has both nasa and CFG; set guidance to 1, or negative to cfg."
        )
    if variant.guidance_to is not None and variant.guidance_to < variant.guidance:
        raise UserError(f"{where(f'{prefix}.guidance_to')}: {prefix}.guidance_to is less than guidance; write more.")


def _score(name: str, values: Any, where: Callable[[str], str]) -> Block:
    """The settings of one score; its kind is its name, or `kind` where there are several of one."""
    values = dict(values) if isinstance(values, dict) else values if values is not None else {}
    if not isinstance(values, dict):
        raise UserError(f"{where(f'scores.{name}')}: scores.{name} is {quoted_value(values)}; it must be a mapping.")
    values = score_rows().get(name, {}) | values
    kind = values.pop("kind", name)
    if kind not in SCORES:
        raise UserError(
            f"{where(f'scores.{name}')}: there is no score {quoted_value(kind)}; known are "
            f"{', '.join([*SCORES, *score_rows()])}; where two are of one kind, give them names and each a `kind`."
        )
    schema = score_module(kind).Settings
    return block(schema, values, lambda key: where(f"scores.{name}.{key}"), f"scores.{name}.")


def score_module(kind: str) -> Any:
    """The file of a score; SCORES are its names."""
    return importlib.import_module(f".scores.{kind}", __package__)


@functools.cache
def score_rows() -> dict[str, dict[str, Any]]:
    """{name of a score: the settings that make it of another}"""
    return yaml.safe_load(Path(__file__).with_name("scores").joinpath("rows.yaml").read_text(encoding="utf-8"))


def _is_safe(name: str) -> bool:
    return name.replace("-", "").replace(".", "").replace("_", "").isalnum() and name.isascii() and name[0] != "."
