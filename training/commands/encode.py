"""`encode`: the prompts of a config, once for all runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .settings_file import add_config, read_config

if TYPE_CHECKING:
    from ..recipe.config import Config

HELP = "encode the prompts of a config once, into its `encoded_prompts`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--output", metavar="DIR", help="folder, instead of the config's `encoded_prompts`")
    parser.add_argument("--again", action="store_true", help="anew, instead of going on with what is there")


def run(options: argparse.Namespace) -> None:
    from ..run.progress import StopSignal

    settings = read_config(options)
    if options.output:
        settings = settings.model_copy(update={"encoded_prompts": options.output})
    print(encode_config(settings, not options.again, StopSignal()))


def encode_config(config: Config, resume: bool = True, stop: Callable[[], bool] = lambda: False) -> Path:
    """What `encode_prompts` does, for the prompts and the teacher of a config; returns the folder. Raises UserError."""
    import torch

    from ..files import claimed
    from ..networks.backbones import load_backbone
    from ..prompts.encode import encode_prompts, extra_texts
    from ..prompts.read import read_prompts

    if not config.encoded_prompts:
        raise UserError("encoded_prompts is not set; name the folder for the encoded prompts in the config.")
    folder = Path(config.encoded_prompts)
    with claimed(folder):
        prompts = read_prompts(config.prompts, config.prompt_column, config.skip_bad_prompts)
        extras = extra_texts(config.null_prompt, config.sample_prompts, config.nasa)
        device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
        backbone = load_backbone(config.backbone, config.teacher, device, config.teacher_parts)
        encode_prompts(folder, config.backbone, backbone, prompts, extras, resume, stop)
    return folder
