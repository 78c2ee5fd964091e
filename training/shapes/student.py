"""From a teacher to the exported one-step student, for either demo model, and what the record says of how."""

import platform
from pathlib import Path

import torch

from ..distill import distill
from ..export import export
from ..recipe import config as configuration
from ..recipe.config import Config
from . import text


def make_student(source: Path, folder: Path, shipped: Path, exported: Path) -> tuple[Config, dict]:
    """Distil the teacher ``source`` in ``folder``, which has prompts.txt, unless it is done, and export the student.

    Returns the settings of the run, and what of it the record says. Raises UserError.
    """
    run = folder / "student"
    recipe = configuration.to_dict(configuration.load(shipped))
    paths = {"teacher": str(source), "prompts": str(folder / "prompts.txt"), "output": str(run)}
    settings = configuration.parse(recipe | paths, str(shipped))
    if not (run / "checkpoints" / f"step-{settings.total_steps:08d}").exists():
        distill(settings, resume=(run / "config.yaml").exists())
    export(run, exported, half=True, title=exported.stem.replace("snoopi-", "SNOOPI "))
    return settings, {
        "start": recipe["start"],
        "distillation": recipe,
        "text_encoder_seed": text.SEED,
        "made_with": f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}",
    }
