"""`settings`: what may stand in a config."""

import argparse

HELP = "print every setting of a config: default, range, meaning and source"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", nargs="?", default="", help="only settings whose name holds this, such as lora")


def run(options: argparse.Namespace) -> None:
    from ..recipe.described import described

    print(described(options.word))
