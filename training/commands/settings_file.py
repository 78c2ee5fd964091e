"""The arguments of every command that reads a config."""

import argparse
from typing import TYPE_CHECKING

from .. import COMMAND

if TYPE_CHECKING:
    from ..recipe.config import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=f"YAML file of the run; `{COMMAND} settings` describes every setting")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="changes",
        help="a setting instead of the file's, as in --set lora.rank=32; may be given several times",
    )


def read_config(options: argparse.Namespace, output: str | None = None) -> "Config":
    """output: the run folder, instead of the config's. Raises UserError."""
    from ..recipe.config import load

    return load(options.config, output, options.changes)
