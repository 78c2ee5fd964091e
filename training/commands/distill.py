"""`distill`: a run."""

import argparse
import os

from .numbers import positive
from .settings_file import add_config, read_config

HELP = "distil a teacher into a one-step student, from prompts alone (PG-SB)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the newest good checkpoint of the run folder")
    parser.add_argument("--output", metavar="DIR", help="run folder, instead of the config's `output`")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config, and the memory and hours it would take"
    )
    parser.add_argument("--processes", type=positive, default=1, help="with --dry-run: how many GPUs (default 1)")


def run(options: argparse.Namespace) -> None:
    settings = read_config(options, options.output)
    if options.dry_run:
        from ..run.plan import report

        print(report(settings, options.processes))
        return
    from ..distill import distill
    from ..recipe.savings import remedies
    from ..run.machine import out_of_memory_told
    from ..run.progress import StopSignal

    with out_of_memory_told(remedies(settings)):
        newest = distill(settings, options.resume, StopSignal())
    if os.environ.get("RANK", "0") == "0":  # of several processes one tells
        print(newest)
