"""Make the demo model, put its checkpoint together, or measure its world."""

import argparse
import json
import sys
from pathlib import Path

from ..errors import UserError
from ..recipe.shipped import DEMO_FOLDER

FOLDER = Path(__file__).with_name("weights")  # weights.py knows it too, but imports torch


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="train the demo model from nothing; goes on where it stopped")
    make.add_argument("--folder", type=Path, default=Path(DEMO_FOLDER), help="working folder (%(default)s)")
    make.add_argument("--target", type=Path, default=FOLDER, help="where the weights go (%(default)s)")
    checkpoint = commands.add_parser("checkpoint", help="write the single-file checkpoint that ComfyUI loads")
    checkpoint.add_argument("output", type=Path, help="a .safetensors file")
    checkpoint.add_argument("--untrained", action="store_true", help="random weights: to test wiring only")
    evaluate = commands.add_parser("evaluate", help="the paper's tables on the demo world; goes on where it stopped")
    evaluate.add_argument("--folder", type=Path, default=Path("build/evaluation"), help="working folder (%(default)s)")
    evaluate.add_argument("--count", type=int, help="only so many prompts: a trial")
    evaluate.add_argument(
        "--without-training",
        action="store_true",
        help="only what the shipped student and the exact teacher show: minutes",
    )
    arguments = parser.parse_args()
    try:
        if arguments.command == "make":
            from .make import make_model

            print(json.dumps(make_model(arguments.folder, arguments.target), indent=1))
        elif arguments.command == "evaluate":
            from ..run.progress import StopSignal
            from .evaluation import evaluate as evaluate_world

            trained = not arguments.without_training
            print("\n\n".join(evaluate_world(arguments.folder, arguments.count, trained, StopSignal())))
        else:
            from . import weights

            print(weights.write_checkpoint(arguments.output, arguments.untrained))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
