"""`evaluate`: pictures of models, scores of pictures, a table beside the paper's."""

import argparse
import os
import re
from pathlib import Path

from ..errors import UserError, quoted
from .numbers import positive

HELP = "draw pictures by a recipe and score them: FID, CLIP, HPSv2, removal and more, beside the paper's figures"
EPILOG = """examples:
  evaluate --list                                   the recipes that come with the trainer
  evaluate table5 pgsb=runs/sd15 --dry-run          disk, hours, and every file that is missing
  evaluate table5 pgsb=runs/sd15 --only pgsb        draw and score one row
  evaluate table5 --draw --shard 0/4                one of four processes that draw
  evaluate my.yaml student.safetensors --count 200  a trial with fewer pictures; nothing is compared
  evaluate figure2 --watch runs/sd15                every checkpoint of a run, as they come"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("recipe", nargs="?", help="name of a recipe, or a .yaml file")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="ROLE=PATH, or PATH in the recipe's order")
    parser.add_argument("--list", action="store_true", help="print the recipes that come with the trainer")
    parser.add_argument("--output", metavar="DIR", help="folder of pictures and results (default runs/evaluate/RECIPE)")
    parser.add_argument("--weights", metavar="DIR", default="evaluation", help="folder of the judges' weights and of "
                        "reference pictures (default %(default)s); --dry-run says what belongs there")  # fmt: skip
    parser.add_argument("--only", metavar="VARIANT", action="append", default=[], help="may be given several times")
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--draw", action="store_true", help="only draw")
    half.add_argument("--score", action="store_true", help="only score what is drawn, perhaps on another machine")
    half.add_argument("--dry-run", action="store_true", help="print what it would take and what is missing")
    half.add_argument("--watch", metavar="RUN", help="draw and score every checkpoint of a training run as it comes")
    parser.add_argument("--shard", metavar="I/N", type=shard, help="draw part I of N, from 0 (default: by accelerate)")
    parser.add_argument("--count", type=positive, help="only so many prompts: a trial")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="changes",
        help="a setting instead of the recipe's, as in --set scores.fid.reference=DIR; may be given several times",
    )


def run(options: argparse.Namespace) -> None:
    if options.list:
        from ..evaluate.recipe import known_recipes, load_recipe

        for name in known_recipes():
            print(f"{name:24s}{load_recipe(name).basics.title}")
        return
    if not options.recipe:
        raise UserError("No recipe; give the name of one (--list prints them) or a .yaml file.")
    from ..evaluate.plan import report
    from ..evaluate.recipe import load_recipe
    from ..evaluate.table import draw_all, score_all
    from ..evaluate.watch import watch
    from ..run.progress import StopSignal

    recipe = load_recipe(options.recipe, options.changes).with_models(options.models).only(options.only)
    output, weights = Path(options.output or f"runs/evaluate/{recipe.name}"), Path(options.weights)
    if options.dry_run:
        print(report(recipe, output, weights, options.count))
        return
    stop = StopSignal()
    if options.watch:
        watch(recipe, Path(options.watch), output, weights, options.count, stop)
        return
    number, of = options.shard or (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if not options.score:
        draw_all(recipe, output, options.count, (number, of), stop)
    if options.draw or (of > 1 and not options.score):
        if number == 0 and not options.draw:
            print(f"Drawn by {of} processes; when all are done, score with --score --output {quoted(output)}.")
        return
    print(score_all(recipe, output, weights, options.count))


def shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no part; write 0/4, 1/4, 2/4 or 3/4 for one of four")
    return int(found[1]), int(found[2])
