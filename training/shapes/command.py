"""The commands of a demo world's package: make its model, put the committed weights together, measure the world."""

import argparse
import importlib
import json
import sys
from pathlib import Path

from ..commands.numbers import positive
from ..errors import UserError


def main(package: str, description: str, working_folder: str) -> int:
    """`python -m package ...`; the exit status. The package has make.make_model and weights.write_checkpoint."""
    target = Path(__file__).parents[1] / package.rpartition(".")[2] / "weights"  # weights.py knows, but imports torch
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="train the demo model from nothing; goes on where it stopped")
    make.add_argument("--folder", type=Path, default=Path(working_folder), help="working folder (%(default)s)")
    make.add_argument("--target", type=Path, default=target, help="where the weights go (%(default)s)")
    checkpoint = commands.add_parser("checkpoint", help="write the single-file checkpoint that ComfyUI loads")
    checkpoint.add_argument("output", type=Path, help="a .safetensors file")
    checkpoint.add_argument("--untrained", action="store_true", help="random weights: to test wiring only")
    if (target.parent / "evaluation.py").exists():
        evaluate = commands.add_parser(
            "evaluate", help="the paper's tables on the demo world; goes on where it stopped"
        )
        evaluate.add_argument(
            "--folder", type=Path, default=Path("build/evaluation"), help="working folder (%(default)s)"
        )
        evaluate.add_argument("--count", type=positive, help="only so many prompts: a trial")
        evaluate.add_argument(
            "--without-training",
            action="store_true",
            help="only what the shipped student and the exact teacher show: minutes",
        )
    if (target.parent / "compare.py").exists():
        compare = commands.add_parser("compare", help="accuracy and distance from the world of students, side by side")
        compare.add_argument("models", nargs="+", metavar="MODEL", help="run folder or exported file")
        compare.add_argument("--teacher", metavar="DIR", help=f"of an exported file ({working_folder}/teacher)")
        compare.add_argument("--count", type=positive, default=500, help="pictures of each (%(default)s)")
    arguments = parser.parse_args()
    try:
        if arguments.command == "make":
            make_model = importlib.import_module(f"{package}.make").make_model
            print(json.dumps(make_model(arguments.folder, arguments.target), indent=1))
        elif arguments.command == "evaluate":
            tables = importlib.import_module(f"{package}.evaluation").evaluate
            print("\n\n".join(tables(arguments.folder, arguments.count, not arguments.without_training)))
        elif arguments.command == "compare":
            found = importlib.import_module(f"{package}.compare").compare
            print(found(arguments.models, arguments.teacher, arguments.count))
        else:
            write_checkpoint = importlib.import_module(f"{package}.weights").write_checkpoint
            print(write_checkpoint(arguments.output, arguments.untrained))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
