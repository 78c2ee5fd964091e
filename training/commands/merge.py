"""`merge`: the mean of students."""

import argparse

from .numbers import share

HELP = "write the weighted mean of two or more students of one family (SwiftBrush v2)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("students", nargs="+", metavar="STUDENT", help="exported files, or run folders")
    parser.add_argument(
        "--weights", nargs="+", type=share, metavar="W", help="a share of each, 1 together (default: all alike)"
    )
    parser.add_argument("--output", metavar="FILE.safetensors", required=True)
    parser.add_argument("--title", help="name in the file's metadata; default: the file's own")
    parser.add_argument("--format", choices=("checkpoint", "unet", "transformer", "lora"), help="of run folders")
    parser.add_argument("--half", action="store_true", help="of run folders 16-bit weights, half the size")


def run(options: argparse.Namespace) -> None:
    from ..export.merge import merge

    told = {"title": options.title, "layout": options.format, "half": options.half, "tell": print}
    merge(options.students, options.output, options.weights, **told)
    print(options.output)
