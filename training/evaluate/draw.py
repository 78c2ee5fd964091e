"""Draws a prompt set into a folder: PNG by id, over several processes if wished, going on where it stopped.

Batches are cut from the whole list and dealt to the processes, and a picture's noise depends on its id alone; so one
process, two, or one that was interrupted write the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from tqdm import tqdm

from ..prompts.read import digest
from ..run.made_of import digest_of
from .painter import Painter, make_painter
from .pictures import brought_to, claim, tag_of, write_picture
from .prompt_set import Prompt
from .recipe import Model, Variant
from .sample import load_model

FORMAT = 1


def draw_variant(
    folder: Path,
    model: Model,
    variant: Variant,
    prompts: Sequence[Prompt],
    batch: int,
    size: int | None,
    shard: tuple[int, int] = (0, 1),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """shard: this process's number and of how many. Raises UserError, and KeyboardInterrupt where stop() is true."""
    backbone, start = load_model(model.path, model.teacher, model.backbone)
    told = {
        "model": model.path,
        "weights_sha256": digest_of(backbone.network),
        "variant": variant.model_dump(mode="json"),
        "start": {"timestep": start.timestep, "noise": start.noise}
        | ({"timesteps": list(start.timesteps)} if start.steps > 1 else {}),
        "made_with": f"torch {torch.__version__}, diffusers {diffusers.__version__}",
    }
    draw(folder, make_painter(backbone, start, variant), told, prompts, batch, size, shard, stop)


def draw(
    folder: Path,
    painter: Painter,
    told: dict[str, Any],
    prompts: Sequence[Prompt],
    batch: int,
    size: int | None,
    shard: tuple[int, int] = (0, 1),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """told: what draws them, for drawn.json; a folder in which something else began to draw is refused."""
    lines = [f"{prompt.id}\t{prompt.prompt}\t{prompt.negative}" for prompt in prompts]
    told = told | {
        "format": FORMAT, "pictures": len(prompts), "prompts_sha256": digest(lines), "batch": batch, "size": size,
    }  # fmt: skip
    claim(folder, told)
    tag, number, processes = tag_of(told), *shard
    batches = [prompts[first : first + batch] for first in range(0, len(prompts), batch)][number::processes]
    left = [part for part in batches if not all(path_of(folder, prompt).exists() for prompt in part)]
    total = sum(map(len, batches))
    done = total - sum(map(len, left))
    with tqdm(total=total, initial=done, unit="picture", desc=f"drawing {folder.name}", dynamic_ncols=True) as bar:
        for part in left:
            if stop():
                bar.close()
                raise KeyboardInterrupt(f"Stopped; {bar.n} of {total} pictures are kept, the same command goes on.")
            drawn = ((path_of(folder, prompt), picture) for prompt, picture in zip(part, painter(part), strict=True))
            for path, picture in ((path, picture) for path, picture in drawn if not path.exists()):
                write_picture(path, brought_to(Image.fromarray(picture), size), tag)
            bar.update(len(part))


def path_of(folder: Path, prompt: Prompt) -> Path:
    return folder / f"{prompt.id}.png"
