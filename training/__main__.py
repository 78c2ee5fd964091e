"""`python -m training COMMAND`, or `snoopi-train COMMAND`: the commands of the trainer.

torch and the libraries on it take seconds to import: nothing here does, nor anything that this imports, before the
arguments are read.
"""

import argparse
import io
import logging
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from . import COMMAND
from .errors import UserError, quoted

DESCRIPTION = "Distils a many-step text-to-image model into a one-step one, from prompts alone (PG-SB, SNOOPI)."
EPILOG = f"""commands in order:
  {COMMAND} distill training/configs/sd15.yaml --dry-run     what it would take: memory, hours
  {COMMAND} encode training/configs/pixart.yaml --output runs/encoded     T5 once for all prompts (for PixArt alone)
  {COMMAND} distill training/configs/sd15.yaml     train a one-step student (Ctrl-C saves; --resume goes on)
  {COMMAND} sample runs/sd15 --prompt "A pet" --output pets.png
  {COMMAND} export runs/sd15 --output student.safetensors     a file that ComfyUI and diffusers load
  {COMMAND} inspect student.safetensors     what a file is

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

    command = commands.add_parser(
        "distill", help="distil a teacher into a one-step student, from prompts alone (PG-SB)"
    )
    command.add_argument("config", help="YAML file; training/recipe/config.py describes every setting")
    command.add_argument(
        "--resume", action="store_true", help="go on from the newest good checkpoint of the run folder"
    )
    command.add_argument("--output", metavar="DIR", help="run folder, instead of the config's `output`")
    command.add_argument(
        "--dry-run", action="store_true", help="print the resolved config, and the memory and hours it would take"
    )
    command.add_argument("--processes", type=positive, default=1, help="with --dry-run: how many GPUs (default 1)")

    command = commands.add_parser("encode", help="encode the prompts of a config once, into its `encoded_prompts`")
    command.add_argument("config", help="the YAML file of the run")
    command.add_argument("--output", metavar="DIR", help="folder, instead of the config's `encoded_prompts`")
    command.add_argument("--again", action="store_true", help="anew, instead of going on with what is there")

    command = commands.add_parser("export", help="write the student as a file that ComfyUI and diffusers load")
    command.add_argument("run", help="run folder, or one of its checkpoints/step-N")
    command.add_argument("--output", metavar="FILE.safetensors", required=True)
    command.add_argument(
        "--format",
        choices=("checkpoint", "unet", "transformer", "lora"),
        help="checkpoint (default for SD): for ComfyUI's Load Checkpoint; unet, or transformer (default for PixArt): "
        "the network alone, for Load Diffusion Model; lora (default for a student that is one): for Load LoRA",
    )
    command.add_argument("--half", action="store_true", help="16-bit weights, half the size")
    command.add_argument(
        "--no-average", action="store_true", help="the last weights, though the run kept an average (EMA)"
    )
    command.add_argument("--licence", help="of the base model; default: what its model card names")
    command.add_argument(
        "--check", choices=("all", "diffusers"), default="all", help="read the file back in ComfyUI too (COMFYUI_PATH)"
    )
    command.add_argument("--title", help="name in the file's metadata; default: the run folder's name")

    command = commands.add_parser("sample", help="draw a grid of pictures: a row a prompt, a column a seed")
    command.add_argument("model", help="run folder, checkpoint folder, exported file, or diffusers folder or hub name")
    command.add_argument("--prompt", action="append", default=[], help="may be given several times")
    command.add_argument("--prompts", metavar="FILE", help="prompts from a .txt or .jsonl file")
    command.add_argument("--output", metavar="GRID.png", required=True)
    command.add_argument("--count", type=positive, default=8, help="pictures per prompt (default 8)")
    command.add_argument("--seed", type=natural, default=0, help="of the noise (default 0)")
    command.add_argument("--steps", type=positive, default=1, help="1 (default): one step; more: DDIM with guidance")
    command.add_argument("--guidance", type=scale, default=3.0, help="CFG scale when steps > 1 (default 3)")
    command.add_argument("--timestep", type=int, help="start of the one step, instead of the model's own")
    command.add_argument("--noise", choices=("unit", "vp"), help="first-step noise, instead of the model's own")
    command.add_argument("--teacher", metavar="DIR", help="diffusers folder of the other parts of an exported file")

    command.add_argument("--backbone", metavar="NAME", help="of a teacher or foreign file: stable_diffusion or pixart")

    command = commands.add_parser("inspect", help="print what a file is: kind, start, base model, licence")
    command.add_argument("file", metavar="FILE", help="a .safetensors file, or a folder: a run, checkpoint or model")

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
        if options.command == "distill":
            from . import distill
            from .recipe import config
            from .run.machine import out_of_memory_told
            from .run.progress import StopSignal

            settings = config.load(options.config, options.output)
            if options.dry_run:
                from .run.plan import report

                print(report(settings, options.processes))
                return 0
            with out_of_memory_told(settings):
                newest = distill.distill(settings, options.resume, StopSignal())
            if os.environ.get("RANK", "0") == "0":  # of several processes one tells
                print(newest)
        elif options.command == "encode":
            from .prompts.encode import encode_prompts
            from .recipe import config
            from .run.progress import StopSignal

            settings = config.load(options.config)
            if options.output:
                settings = replace(settings, encoded_prompts=options.output)
            print(encode_prompts(settings, not options.again, StopSignal()))
        elif options.command == "inspect":
            from .export.inspect import describe

            print(describe(options.file))
        elif options.command == "export":
            from .export import export

            choices = {"layout": options.format, "half": options.half, "average": not options.no_average}
            told = {"title": options.title, "licence": options.licence, "check": options.check, "tell": print}
            export(options.run, options.output, **choices, **told)
            print(options.output)
        else:
            draw(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if str(error.name).startswith(__package__):
            raise
        print(f"error: The package {error.name} is not installed; install the extra `training`.", file=sys.stderr)
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


def draw(options: argparse.Namespace) -> None:
    from .evaluate.sample import load_model, sample_to_file
    from .files import check_writable
    from .prompts.read import fault_of, read_prompts
    from .recipe.config import MOST_PICTURES

    prompts = options.prompt + (read_prompts(options.prompts) if options.prompts else [])
    if not prompts:
        raise UserError("No prompt; give --prompt TEXT or --prompts FILE.")
    if fault := next((fault for prompt in options.prompt if prompt and (fault := fault_of(prompt))), ""):
        raise UserError(f"--prompt: {fault}; give another.")
    if (pictures := len(prompts) * options.count) > MOST_PICTURES:
        raise UserError(
            f"{len(prompts)} prompts times {options.count} are {pictures} pictures, more than the {MOST_PICTURES} that "
            f"a grid holds; give fewer, or a smaller --count."
        )
    output = Path(options.output)
    if output.is_dir():
        raise UserError(f"--output is {quoted(output)}, a folder; give the name of a file.")
    check_writable(output.parent)
    backbone, start = load_model(options.model, options.teacher, options.backbone)
    given = {"timestep": options.timestep, "noise": options.noise}
    start = replace(start, **{name: value for name, value in given.items() if value is not None})
    last = len(backbone.alphas) - 1
    if not 0 < start.timestep <= last:
        raise UserError(f"--timestep is {start.timestep}; allowed is 1 to {last}.")
    if options.steps > last + 1:
        raise UserError(f"--steps is {options.steps}; this model has {last + 1} timesteps, 25 to 50 steps are enough.")
    backbone.check_timesteps({"--timestep": start.timestep} if options.steps == 1 else {"--steps": last})
    settings = {"count": options.count, "seed": options.seed, "steps": options.steps, "scale": options.guidance}
    sample_to_file(backbone, prompts, options.output, start=start, **settings)
    print(options.output)


def positive(text: str) -> int:
    if not (number := natural(text)):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number above 0")
    return number


def natural(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number from 0 to {2**63 - 1}")
    return int(text)


def scale(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]*)?|\.[0-9]+", text) or float(text) > 100:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number from 0 to 100")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
