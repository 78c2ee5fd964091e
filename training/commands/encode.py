"""`encode`: the prompts of a config, once for all runs."""

import argparse

from .settings_file import add_config, read_config

HELP = "encode the prompts of a config once, into its `encoded_prompts`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--output", metavar="DIR", help="folder, instead of the config's `encoded_prompts`")
    parser.add_argument("--again", action="store_true", help="anew, instead of going on with what is there")


def run(options: argparse.Namespace) -> None:
    from ..prompts.encode import encode_prompts
    from ..run.progress import StopSignal

    settings = read_config(options)
    if options.output:
        settings = settings.model_copy(update={"encoded_prompts": options.output})
    print(encode_prompts(settings, not options.again, StopSignal()))
