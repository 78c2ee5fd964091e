"""`export`: from a run to a file."""

import argparse

HELP = "write the student as a file that ComfyUI and diffusers load"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder, or one of its checkpoints/step-N")
    parser.add_argument("--output", metavar="FILE.safetensors", required=True)
    parser.add_argument(
        "--format",
        choices=("checkpoint", "unet", "transformer", "lora"),
        help="checkpoint (default for SD): for ComfyUI's Load Checkpoint; unet, or transformer (default for PixArt): "
        "the network alone, for Load Diffusion Model; lora (default for a student that is one): for Load LoRA",
    )
    parser.add_argument("--half", action="store_true", help="16-bit weights, half the size")
    parser.add_argument(
        "--no-average", action="store_true", help="the last weights, though the run kept an average (EMA)"
    )
    parser.add_argument("--licence", help="of the base model; default: what its model card names")
    parser.add_argument(
        "--check", choices=("all", "diffusers"), default="all", help="read the file back in ComfyUI too (COMFYUI_PATH)"
    )
    parser.add_argument("--title", help="name in the file's metadata; default: the run folder's name")


def run(options: argparse.Namespace) -> None:
    from ..export import export

    choices = {"layout": options.format, "half": options.half, "average": not options.no_average}
    told = {"title": options.title, "licence": options.licence, "check": options.check, "tell": print}
    export(options.run, options.output, **choices, **told)
    print(options.output)
