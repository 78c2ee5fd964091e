"""`inspect`: what a file is."""

import argparse

HELP = "print what a file is: kind, start, base model, licence"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or a folder: a run, checkpoint or model")


def run(options: argparse.Namespace) -> None:
    from ..export.inspect import describe

    print(describe(options.file))
