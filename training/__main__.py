"""`python -m training COMMAND`: the commands of the trainer."""

import argparse
import sys
from dataclasses import replace

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from .errors import UserError
from .progress import StopSignal

EPILOG = """commands in order:
  python -m training distill training/configs/sd15.yaml     train a one-step student (Ctrl-C saves; --resume goes on)
  python -m training sample runs/sd15 --prompt "A pet" --output pets.png
  python -m training export runs/sd15 --output student.safetensors     a file that ComfyUI and diffusers load
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "distill", help="distil a teacher into a one-step student, from prompts alone (PG-SB)"
    )
    command.add_argument("config", help="YAML file; training/config.py describes every setting")
    command.add_argument(
        "--resume", action="store_true", help="go on from the newest good checkpoint of the run folder"
    )
    command.add_argument("--output", metavar="DIR", help="run folder, instead of the config's `output`")

    command = commands.add_parser("export", help="write the student as a file that ComfyUI and diffusers load")
    command.add_argument("run", help="run folder, or one of its checkpoints/step-N")
    command.add_argument("--output", metavar="FILE.safetensors", required=True)
    command.add_argument(
        "--format",
        choices=("checkpoint", "unet"),
        default="checkpoint",
        help="checkpoint (default): for ComfyUI's Load Checkpoint; unet: the UNet alone, for Load Diffusion Model",
    )
    command.add_argument("--half", action="store_true", help="16-bit weights, half the size")
    command.add_argument(
        "--no-average", action="store_true", help="the last weights, though the run kept an average (EMA)"
    )
    command.add_argument("--title", help="name in the file's metadata; default: the run folder's name")

    command = commands.add_parser("sample", help="draw a grid of pictures: a row a prompt, a column a seed")
    command.add_argument("model", help="run folder, checkpoint folder, exported file, or diffusers folder or hub name")
    command.add_argument("--prompt", action="append", default=[], help="may be given several times")
    command.add_argument("--prompts", metavar="FILE", help="prompts from a .txt or .jsonl file")
    command.add_argument("--output", metavar="GRID.png", required=True)
    command.add_argument("--count", type=positive, default=8, help="pictures per prompt (default 8)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=positive, default=1, help="1 (default): one step; more: DDIM with guidance")
    command.add_argument("--guidance", type=float, default=3.0, help="CFG scale when steps > 1 (default 3)")
    command.add_argument("--timestep", type=int, help="start of the one step, instead of the model's own")
    command.add_argument("--noise", choices=("unit", "vp"), help="first-step noise, instead of the model's own")
    command.add_argument("--teacher", metavar="DIR", help="diffusers folder of the other parts of an exported file")

    options = parser.parse_args(arguments)
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        if options.command == "distill":
            from . import config, distill

            settings = config.load(options.config, options.output)
            print(distill.distill(settings, options.resume, StopSignal()))
        elif options.command == "export":
            from .export import export

            source, output = options.run, options.output
            difference = export(source, output, options.format, options.half, not options.no_average, options.title)
            print(f"{output}: read back, one-step latent differs by {difference:.1e} (relative)")
        else:
            draw(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(
            stopped.args[0] if stopped.args else "Stopped; nothing since the last checkpoint is kept.", file=sys.stderr
        )
        return 130
    return 0


def draw(options: argparse.Namespace) -> None:
    from .prompts import read_prompts
    from .sample import load_model, sample_to_file

    prompts = options.prompt + (read_prompts(options.prompts) if options.prompts else [])
    if not prompts:
        raise UserError("No prompt; give --prompt TEXT or --prompts FILE.")
    backbone, start = load_model(options.model, options.teacher)
    given = {"timestep": options.timestep, "noise": options.noise}
    start = replace(start, **{name: value for name, value in given.items() if value is not None})
    if not 0 < start.timestep < len(backbone.alphas):
        raise UserError(f"--timestep is {start.timestep}; allowed is 1 to {len(backbone.alphas) - 1}.")
    settings = {"count": options.count, "seed": options.seed, "steps": options.steps, "scale": options.guidance}
    sample_to_file(backbone, prompts, options.output, start=start, **settings)
    print(options.output)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
