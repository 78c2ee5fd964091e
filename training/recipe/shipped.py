"""The files that come with the trainer, and those of the demo worlds, which a command makes."""

from pathlib import Path

# `make demo-model` puts the teacher and the prompts of configs/shapes.yaml here, those of portraits.yaml in portraits/
DEMO_FOLDER = "build/demo-model"


def shipped(path: str | Path) -> Path:
    """`path`; where it is not there and begins with training/, the trainer's own file of that name, if there is one.

    So the configs, which name files as a checkout has them, work from every folder and from an installed wheel.
    """
    path = Path(path)
    own = Path(__file__).parents[1].joinpath(*path.parts[1:])
    return own if path.parts[:1] == ("training",) and own.is_file() and not path.exists() else path


def remedy(path: str | Path) -> str:
    """The end of a sentence about the missing file or folder `path`: what makes it, if it is a demo world's."""
    path = Path(path).as_posix()
    if DEMO_FOLDER not in path:
        return ""
    world = f"{__package__.partition('.')[0]}.{'portraits' if f'{DEMO_FOLDER}/portraits' in path else 'shapes'}"
    return f"; run `make demo-model` first, which makes it (without make: `python -m {world} make`)"
