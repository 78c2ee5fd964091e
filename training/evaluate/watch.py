"""Follows a training run: every checkpoint is drawn with and scored as it comes; the run knows nothing of it.

    OUTPUT/watch/RUN/step-N/VARIANT/     pictures, deleted once they are scored
    OUTPUT/watch/RUN.jsonl               a line a checkpoint: {"step": ..., "scores": ...}
    OUTPUT/watch.png                     a curve for each RUN.jsonl

Figure 2 is three runs, watched into one OUTPUT.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError, quoted
from ..files import atomic_file
from ..recipe.config import load
from .features import Features
from .plot import plot_steps, read_curve
from .prompt_set import read_prompt_set
from .recipe import Recipe
from .table import draw_all, number, score_folder

PAUSE = 10  # seconds between looks


def watch(
    recipe: Recipe, run: Path, output: Path, weights: Path, count: int | None, stop: Callable[[], bool],
    pause: float = PAUSE,
) -> None:  # fmt: skip
    """Until the run's last checkpoint is scored, or stop() is true. What was scored before is not scored again.

    Raises UserError for a folder that is no run.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{quoted(run)} is no run: it has no config.yaml; give the folder that distill writes.")
    last = load(run / "config.yaml").total_steps
    name = next(iter(recipe.variants))
    recipe = recipe.only([name])
    lines = output / "watch" / f"{run.resolve().name}.jsonl"
    features = Features(output / "features", weights)
    prompts = read_prompt_set(recipe.prompts, recipe.folder, count)
    while not stop():
        rows = read_curve(lines) if lines.exists() else []
        seen = {row["step"] for row in rows}
        fresh = [folder for folder in checkpoints(run) if step_of(folder) not in seen]
        if not fresh and last in seen:
            return
        if not fresh:
            time.sleep(pause)
            continue
        folder = output / "watch" / run.resolve().name / fresh[0].name
        try:
            draw_all(recipe.with_models([f"{recipe.variants[name].model}={fresh[0]}"]), folder, count, stop=stop)
        except UserError:
            if fresh[0].exists():
                raise
            continue  # the run deleted it for a newer one meanwhile
        result = score_folder(recipe, name, folder, prompts, features, count is not None)
        kept = {key: result[key] for key in ("n", "protocol", "used", "scores")}
        rows.append({"step": step_of(fresh[0]), "weights_sha256": result["drawn"]["weights_sha256"]} | kept)
        with atomic_file(lines) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        shutil.rmtree(folder)
        told = ", ".join(f"{key} {number(value)}" for key, value in result["scores"].items())
        print(f"step {step_of(fresh[0])}: {told}", flush=True)
        curves = {path.stem: read_curve(path) for path in sorted(lines.parent.glob("*.jsonl"))}
        plot_steps(recipe, curves, output / "watch.png")


def checkpoints(run: Path) -> list[Path]:
    """Those that are whole, by step: state.json is written last."""
    return sorted(path.parent for path in run.glob("checkpoints/step-*/state.json"))


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
