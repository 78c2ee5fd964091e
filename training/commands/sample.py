"""`sample`: pictures of a model."""

import argparse
from pathlib import Path

from ..errors import UserError, quoted
from .numbers import natural, positive, scale

HELP = "draw a grid of pictures: a row a prompt, a column a seed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="run folder, checkpoint folder, exported file, or diffusers folder or hub name")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help="prompts from a .txt or .jsonl file")
    parser.add_argument("--output", metavar="GRID.png", required=True)
    parser.add_argument("--count", type=positive, default=8, help="pictures per prompt (default 8)")
    parser.add_argument("--seed", type=natural, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--steps", type=positive, help="1: the first alone; more: a teacher's sampler, with guidance (default: its own)"
    )
    parser.add_argument("--guidance", type=scale, default=3.0, help="CFG scale when steps > 1 (default 3)")
    parser.add_argument("--timestep", type=int, help="of the first step, instead of the model's own")
    parser.add_argument("--noise", choices=("unit", "vp"), help="first-step noise, instead of the model's own")
    parser.add_argument("--teacher", metavar="DIR", help="diffusers folder of the other parts of an exported file")
    parser.add_argument(
        "--backbone", metavar="NAME", help="of a teacher or foreign file: stable_diffusion, stable_diffusion3 or pixart"
    )


def run(options: argparse.Namespace) -> None:
    from ..evaluate.sample import load_model, sample_to_file
    from ..files import check_writable
    from ..prompts.read import fault_of, read_prompts
    from ..recipe.config import MOST_PICTURES

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
    last = len(backbone.alphas) - 1
    first = start.timestep if options.timestep is None else options.timestep
    if not 0 < first <= last:
        raise UserError(f"--timestep is {first}; allowed is 1 to {last}.")
    steps = options.steps
    if steps == 1:
        start, steps = start.model_copy(update={"steps": 1, "later": None}), None
    start = start.moved("--timestep", options.timestep, options.noise)
    if steps and steps > last + 1:
        raise UserError(f"--steps is {steps}; this model has {last + 1} timesteps, 25 to 50 steps are enough.")
    if not steps:
        backbone.check_start(start.timestep, start.noise)
    backbone.check_timesteps({"--steps": last} if steps else {"--timestep": start.timestep})
    settings = {"count": options.count, "seed": options.seed, "steps": steps, "scale": options.guidance}
    sample_to_file(backbone, prompts, options.output, start=start, **settings)
    print(options.output)
