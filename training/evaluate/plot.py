"""Curves of a recipe, by matplotlib."""

import json
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted
from ..files import atomic_file
from .recipe import Recipe


def plot_variants(recipe: Recipe, results: dict[str, dict[str, Any]], path: Path) -> None:
    """recipe.plot.y over recipe.plot.x: a curve for each way of a negative prompt, with intervals, and the paper's.

    A way of one variant alone is a level line. Raises UserError.
    """
    x, y = recipe.plot.x, recipe.plot.y
    ours: dict[str, list[tuple[float, float, Any]]] = {}
    theirs = []
    for name, variant in recipe.variants.items():
        place = getattr(variant, x, None)
        if isinstance(place, bool) or not isinstance(place, (int, float)) or variant.guidance_to is not None:
            continue
        value = results.get(name, {}).get("scores", {}).get(y, {})
        if value.get("value") is not None:
            interval = value["interval"] or [value["value"]] * 2
            ours.setdefault(variant.negative, []).append((place, value["value"], interval))
        if y in recipe.figures.get(name, {}):
            theirs.append((place, recipe.figures[name][y]))
    if not ours:
        raise UserError(f"plot: no variant has both {quoted(x)} and a score {quoted(y)}; correct the recipe.")
    figure, axes = _axes(recipe.basics.title, x, y)
    for number, (way, points) in enumerate(ours.items()):
        label = "ours, 95% interval" if len(ours) == 1 else "no negative prompt" if way == "none" else way
        _draw(axes, sorted(points), label, f"C{number}")
    if theirs:
        axes.plot(*zip(*sorted(theirs), strict=True), marker="s", linestyle="--", color="gray", label="the paper")
    _save(figure, axes, path)


def _draw(axes: Any, points: list[tuple[float, float, Any]], label: str, color: str) -> None:
    places, values, intervals = zip(*points, strict=True)
    if len(points) == 1:
        axes.axhline(values[0], color=color, linestyle=":", label=label)
        axes.axhspan(*intervals[0], color=color, alpha=0.1)
        return
    below = [value - low for value, (low, _) in zip(values, intervals, strict=True)]
    above = [high - value for value, (_, high) in zip(values, intervals, strict=True)]
    axes.errorbar(places, values, [below, above], marker="o", capsize=3, label=label, color=color)


def plot_steps(recipe: Recipe, curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A curve a run: recipe.plot.y (else the first score) over the step, with intervals. Raises UserError."""
    first = next(iter(next(iter(curves.values()))[0]["scores"]))
    y = recipe.plot.y if recipe.plot else first
    figure, axes = _axes(recipe.basics.title, "step", y)
    for name, rows in curves.items():
        known = [(row["step"], row["scores"][y]) for row in rows if row["scores"].get(y, {}).get("value") is not None]
        steps, values = [step for step, _ in known], [value["value"] for _, value in known]
        (line,) = axes.plot(steps, values, marker="o", label=name)
        if known and all(value["interval"] for _, value in known):
            low, high = zip(*(value["interval"] for _, value in known), strict=True)
            axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
    _save(figure, axes, path)


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl of --watch, by step. Raises UserError."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return sorted(rows, key=lambda row: row["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"Cannot read {quoted(path)} ({quoted(error)}); delete it and watch again.") from None


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot there is no window and no global state

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x.replace("_", " "))
    axes.set_ylabel(y.replace("_", " "))
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
