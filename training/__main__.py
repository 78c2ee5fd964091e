"""`python -m training COMMAND`, or `snoopi-train COMMAND`: the commands of the trainer.

torch and the libraries on it take seconds to import: nothing here does, nor do the files in commands/, before the
arguments are read.
"""

import argparse
import io
import logging
import sys
from typing import NoReturn

from . import COMMAND
from .commands import distill, encode, evaluate, export, inspect, merge, sample, settings
from .errors import UserError, quoted

COMMANDS = (distill, encode, sample, export, merge, evaluate, inspect, settings)
DESCRIPTION = "Distils a many-step text-to-image model into a one-step one, from prompts alone (PG-SB, SNOOPI)."
EPILOG = f"""commands in order:
  {COMMAND} distill training/configs/sd15.yaml --dry-run     what it would take: memory, hours
  {COMMAND} encode training/configs/pixart.yaml --output runs/encoded     T5 once for all prompts (for PixArt alone)
  {COMMAND} distill training/configs/sd15.yaml     train a one-step student (Ctrl-C saves; --resume goes on)
  {COMMAND} sample runs/sd15 --prompt "A pet" --output pets.png
  {COMMAND} export runs/sd15 --output student.safetensors     a file that ComfyUI and diffusers load
  {COMMAND} merge a.safetensors b.safetensors --weights .5 .5 --output mean.safetensors     the mean of two students
  {COMMAND} evaluate --list     the tables of the paper: draw, score, compare
  {COMMAND} inspect student.safetensors     what a file is
  {COMMAND} settings     all that a config can say; --set lora.rank=32 changes one of them for a run

Where there is no such file here, training/... is the trainer's own.
On several GPUs: accelerate launch --multi_gpu -m {__package__} distill training/configs/sd15.yaml
  (`student: {{shard: true}}` in the config splits the student over them instead of copying it)
"""


class Parser(argparse.ArgumentParser):
    """argparse quotes what it does not know as it is, however long."""

    def error(self, message: str) -> NoReturn:
        super().error(str(UserError(message)))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog=COMMAND,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(command.__name__.rpartition(".")[2], help=command.HELP)
        command.add_arguments(own)
        own.set_defaults(run_command=command.run)
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console that cannot show a letter shows its number
    try:
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        for library in (diffusers_logging, transformers_logging):
            library.set_verbosity(logging.CRITICAL)  # what they find wrong is told in one sentence
        transformers_logging.disable_progress_bar()
        options.run_command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if str(error.name).startswith(__package__):
            raise
        extra = "evaluation" if error.name in ("matplotlib", "open_clip", "torch_fidelity") else "training"
        print(f"error: The package {error.name} is not installed; install the extra `{extra}`.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {quoted(error)}; nothing that was there is lost.", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        from .run.machine import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print("error: Out of memory; end other programs, or ask for fewer pictures (--count).", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(stopped.args[0] if stopped.args else "Stopped at once; what was saved before is kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
