"""The run folder: claimed by `distill`, opened by `export` and `sample`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from ..errors import UserError, quoted
from ..files import atomic_file
from ..recipe import config as configs
from . import checkpoint as checkpoints
from .made_of import is_recorded


@dataclass
class Run:
    folder: Path
    config: configs.Config
    checkpoint: checkpoints.Checkpoint  # without the optimisers

    def weights(self, average: bool = True) -> dict[str, Tensor]:
        """The student's state dict, fp32: the average (EMA) where it is asked for and the run kept one."""
        roles = self.checkpoint.weights
        return roles["student"] | roles["ema"] if average and "ema" in roles else roles["student"]


def open_run(source: str | Path) -> Run:
    """`source`: a run folder (its newest good checkpoint is taken) or RUN/checkpoints/step-N. Raises UserError."""
    source = Path(source)
    inside = source.parent.name == "checkpoints"
    folder = source.parent.parent if inside else source
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{quoted(source)} is no run: there is no {quoted(folder / 'config.yaml')}; give the folder that distill "
            f"wrote."
        )
    load = checkpoints.load if inside else checkpoints.load_newest
    checkpoint = load(source, optimizers=False)
    if checkpoint is None:
        raise UserError(
            f"{quoted(source)} holds no checkpoint yet; let the run go on with `distill --resume` until it has saved."
        )
    return Run(folder, configs.load(folder / "config.yaml"), checkpoint)


def find_saved(run: Path, config: configs.Config, resume: bool) -> checkpoints.Checkpoint | None:
    """What to go on from: with `resume` the newest good checkpoint, if there is any. Tells of changed learning rates.

    Raises UserError for a folder that holds a run already, or one started with other settings.
    """
    path = run / "config.yaml"
    if not path.exists() and checkpoints.newest_first(run):
        raise UserError(f"{quoted(run)} holds checkpoints but no config.yaml; put it back, or give another --output.")
    if path.exists() and not resume:
        raise UserError(f"{quoted(run)} already holds a run; add --resume to go on with it, or give another --output.")
    saved, rates = None, []
    if path.exists():
        before = configs.load(path)
        if changed := configs.differences(before, config, by_contents=is_recorded(run)):
            raise UserError(
                f"{quoted(run)} was started with another config: {'; '.join(changed)}. Set these back or give another "
                f"--output."
            )
        rates = configs.changed_rates(before, config)
        saved = checkpoints.load_newest(run)
        if saved and not {"student", "lora"} <= saved.weights.keys() & saved.optimizers.keys():
            raise UserError(f"The checkpoints of {quoted(run)} cannot be gone on from: LoRA or optimisers are missing.")
    if saved and saved.state["step"] > config.total_steps:
        raise UserError(
            f"{quoted(run)} has come to step {saved.state['step']}, and this config ends at {config.total_steps}; "
            f"write more `steps`, or `export` what there is."
        )
    if rates:
        first = saved.state["step"] + 1 if saved else 1
        print(f"{quoted(run)}: from step {first} on: {'; '.join(rates)}.", file=sys.stderr)
    if resume and saved is None:
        print(f"{quoted(run)} holds no checkpoint yet; the run starts from the beginning.", file=sys.stderr)
    return saved


def write_config(run: Path, config: configs.Config) -> None:
    """The resolved config, every default spelled out. Raises UserError (disk)."""
    with atomic_file(run / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(configs.to_dict(config), sort_keys=False), encoding="utf-8")
