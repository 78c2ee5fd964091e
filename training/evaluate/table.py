"""A recipe from models to a table: draw every variant, score every folder, print ours beside the paper's.

    OUTPUT/VARIANT/ID.png, drawn.json     pictures.py
    OUTPUT/VARIANT/result.json            protocol, versions, hashes, n, values, intervals
    OUTPUT/features/                      features.py
    OUTPUT/table.md, plot.png             of all variants that are scored by now

A recipe may be drawn on one machine and scored on another: the folder is all that passes between them.
"""

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted
from ..files import atomic_file, check_writable
from ..prompts.read import digest
from .draw import draw_variant
from .features import Features
from .pictures import Pictures, drawn_pictures, read_drawn, reference_pictures
from .prompt_set import Prompt, read_prompt_set
from .recipe import Recipe, score_module
from .scores import Seen, Value

FORMAT, RESULT = 1, "result.json"
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "diffusers", "transformers", "torch-fidelity",
             "open-clip-torch")  # fmt: skip


def draw_all(
    recipe: Recipe,
    output: Path,
    count: int | None = None,
    shard: tuple[int, int] = (0, 1),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Every variant that is not drawn elsewhere. Raises UserError."""
    prompts = read_prompt_set(recipe.prompts, recipe.folder, count)
    check_writable(output)
    for variant in recipe.variants.values():  # before any hour is spent
        model = recipe.models[variant.model]
        if model.is_missing and model.pictures == "here":
            raise UserError(
                f"{variant.model} is {quoted(model.path)}, which is not here; give {variant.model}=PATH, or leave it "
                f"out with --only (--dry-run tells all that is missing)."
            )
    for name, variant in recipe.variants.items():
        model = recipe.models[variant.model]
        if model.pictures == "here":
            draw_variant(output / name, model, variant, prompts, recipe.basics.batch, recipe.basics.size, shard, stop)


def score_all(recipe: Recipe, output: Path, weights: Path, count: int | None = None) -> str:
    """Writes a result.json for every variant, then the table and the plot; returns the table. Raises UserError."""
    prompts = read_prompt_set(recipe.prompts, recipe.folder, count)
    folders = {name: folder_of(recipe, name, output) for name in recipe.variants}
    for folder in folders.values():  # before any hour is spent
        drawn_pictures(folder, prompts, recipe.basics.size)
    features = Features(output / "features", weights)
    for name in recipe.variants:
        result = score_folder(recipe, name, output, prompts, features, count is not None)
        _write_json(output / name / RESULT, result)
    return write_table(recipe, output)


def folder_of(recipe: Recipe, variant: str, output: Path) -> Path:
    """Where its pictures lie."""
    model = recipe.models[recipe.variants[variant].model]
    return Path(model.path) if model.pictures == "elsewhere" else output / variant


def score_folder(
    recipe: Recipe, name: str, output: Path, prompts: Sequence[Prompt], features: Features, trial: bool = False
) -> dict[str, Any]:
    """The content of one result.json. Raises UserError."""
    size = recipe.basics.size
    used: dict[str, Any] = {}

    def variant(other: str) -> Pictures:
        if other not in recipe.variants:
            raise UserError(f"The recipe {quoted(recipe.name)} has no variant {quoted(other)} to compare with.")
        return drawn_pictures(folder_of(recipe, other, output), prompts, size)

    def reference(path: str) -> Pictures:
        below = features.weights / path
        return reference_pictures(below if below.is_dir() else Path(path), size)

    pictures = variant(name)
    seen = Seen(pictures, features, variant, reference, features.weights, used)
    values: dict[str, Value] = {}
    for score, settings in recipe.scores.items():
        kind = kind_of(settings)
        for key, value in score_module(kind).score(seen, settings).items():
            values[score if key == kind else key if score == kind else f"{score}_{key}"] = value
    lines = [f"{prompt.id}\t{prompt.prompt}\t{prompt.negative}" for prompt in prompts]
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "variant": name,
        "n": len(pictures),
        "trial": trial,
        "protocol": {
            "size": size,
            "prompts_sha256": digest(lines),
            "scores": {score: settings.model_dump(mode="json") for score, settings in recipe.scores.items()},
        },
        "used": used,
        "versions": versions(),
        "drawn": read_drawn(pictures.folder) or "elsewhere: by what is not known here",
        "pictures_sha256": pictures.digest,
        "scores": {key: _plain(value) for key, value in values.items()},
    }


def kind_of(settings: Any) -> str:
    return type(settings).__module__.rpartition(".")[2]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_table(recipe: Recipe, output: Path) -> str:
    """table.md, and plot.png where the recipe has one, of the results that are there and of one protocol."""
    from .plot import plot_variants

    results = read_results(recipe, output)
    text = table(recipe, results)
    with atomic_file(output / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    if recipe.plot and recipe.plot.x != "step":
        plot_variants(recipe, results, output / "plot.png")
    return text


def read_results(recipe: Recipe, output: Path) -> dict[str, dict[str, Any]]:
    """{variant: its result}, of those that are there. Raises UserError where two were made by different protocols."""
    results = {}
    for name in recipe.variants:
        path = output / name / RESULT
        if not path.exists():
            continue
        try:
            results[name] = dict(json.loads(path.read_text(encoding="utf-8")))
            results[name]["scores"], results[name]["protocol"], results[name]["used"]  # noqa: B018
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"Cannot read {quoted(path)} ({quoted(error)}); delete it and score again.") from None
    for key in ("protocol", "used", "n"):
        kinds = {json.dumps(result[key], sort_keys=True): name for name, result in results.items()}
        if len(kinds) > 1:
            first, second, *_ = kinds.values()
            raise UserError(
                f"{quoted(first)} and {quoted(second)} in {quoted(output)} were scored with another {key} (settings, "
                f"weights, reference or number of pictures); score both again, one table is of one protocol."
            )
    return results


def table(recipe: Recipe, results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a variant, a column a score, the paper's figure and whether ours agrees behind it."""
    scored = [key for result in results.values() for key in result["scores"]]
    compared = [key for figures in recipe.figures.values() for key in figures if _score_of(key) == key]
    names = list(dict.fromkeys(scored + compared))
    lines = [f"# {recipe.basics.title}", ""]
    if recipe.basics.paper:
        lines += [f"Behind a stroke: {recipe.basics.paper}.", ""]
    if any(result["trial"] for result in results.values()):
        lines += ["A trial with fewer pictures than the recipe's: nothing here is comparable with the paper.", ""]
    lines += [f"| | n | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for variant in recipe.variants:
        result = results.get(variant)
        cells = [_cell(recipe, variant, key, result) for key in names]
        lines.append(f"| {variant} | {result['n'] if result else '-'} | {' | '.join(cells)} |")
    lines += ["", *_orders(recipe, results), *_groups(recipe, results)]
    if without := [variant for variant in recipe.variants if variant not in results]:
        lines.append(f"Not scored here: {', '.join(without)}.")
    return "\n".join(lines).rstrip()


def _cell(recipe: Recipe, variant: str, key: str, result: dict[str, Any] | None) -> str:
    """A score, or "score.group", of one variant."""
    theirs, score = recipe.figures.get(variant, {}).get(key), _score_of(key)
    value = result["scores"].get(score) if result else None
    if value and score != key:
        value = value["groups"].get(key.removeprefix(score + "."))
    shown = number(value)
    if theirs is None:
        return shown
    shown += f" / {theirs:g}"
    if not value or value["value"] is None or result["trial"] or score not in recipe.tolerance:
        return shown
    return shown + (" agrees" if abs(value["value"] - theirs) <= recipe.tolerance[score] else " **differs**")


def _score_of(key: str) -> str:
    """Of "removal.person, male" it is removal."""
    return key.partition(".")[0]


def number(value: dict[str, Any] | None) -> str:
    """A value of result.json with its interval, as "0.97 (0.94 to 0.99)"."""
    if value is None:
        return "-"
    if value["value"] is None:
        return "cannot be told"
    interval = value["interval"]
    return f"{value['value']:.4g}" + (f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval else "")


def _orders(recipe: Recipe, results: dict[str, dict[str, Any]]) -> list[str]:
    """Whether the variants come in the paper's order, for scores of which no more can be compared."""
    lines = []
    for key in recipe.order:
        theirs = {name: figures[key] for name, figures in recipe.figures.items() if key in figures}
        ours = {
            name: value
            for name, result in results.items()
            if (value := result["scores"].get(key, {}).get("value")) is not None and name in theirs
        }
        if len(ours) < len(theirs):
            lines += [f"{key}: the order of {len(theirs)} variants is compared once all are scored.", ""]
            continue
        orders = [" < ".join(sorted(values, key=values.get)) for values in (theirs, ours)]
        verdict = "the paper's order" if orders[0] == orders[1] else "**not the paper's order**"
        lines += [f"{key}: {verdict} (paper: {orders[0]}; ours: {orders[1]}).", ""]
    return lines


def _groups(recipe: Recipe, results: dict[str, dict[str, Any]]) -> list[str]:
    keys = [key for result in results.values() for key, value in result["scores"].items() if value["groups"]]
    lines = []
    for key in dict.fromkeys(keys):
        with_groups = {name: result["scores"][key]["groups"] for name, result in results.items()
                       if key in result["scores"]}  # fmt: skip
        groups = list(dict.fromkeys(group for found in with_groups.values() for group in found))
        lines += [f"| {key} | {' | '.join(with_groups)} |", "|---" * (len(with_groups) + 1) + "|"]
        for group in groups:
            cells = [_cell(recipe, variant, f"{key}.{group}", results[variant]) for variant in with_groups]
            lines.append(f"| {group} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _plain(value: Value) -> dict[str, Any]:
    """A Value as JSON; what is no finite number cannot be told."""
    found = asdict(value) | {"groups": {name: _plain(inner) for name, inner in value.groups.items()}}
    for key in ("value", "interval"):
        numbers = found[key] if isinstance(found[key], tuple) else (found[key],)
        if any(one is not None and not math.isfinite(one) for one in numbers):
            found[key] = None
    return found


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
