"""Square pictures beside the graphs in workflows/: without and with the negative prompt, by the demo model.

    PYTHONPATH=tests:. build/venv/bin/python -m demo.thumbnails         all of them
    PYTHONPATH=tests:. build/venv/bin/python -m demo.thumbnails 21 22   those whose names begin so

No weights of the published models can be had here, so every thumbnail says which model drew it. The seeds are chosen:
with each, what is not wanted is in three of four pictures without the negative prompt and in none with it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from comfyui.serve import prepare, serve
from demo.__main__ import CHECKPOINT, make_checkpoint
from demo.figures import font
from demo.graphs import WORKFLOWS, Graphs
from training.shapes.detector import read
from training.shapes.measurement import ALPHA, Pair, absent, kept

SIDE, PICTURE, BAR = 480, 192, 48
PAPER, INK, QUIET = "#1b1f24", "#ffffff", "#9da7b3"
SHOWN = (
    (Pair("a colored circle", "red"), 26),
    (Pair("a colored square", "green"), 32),
    (Pair("a colored triangle", "blue"), 6),
    (Pair("a colored cross", "yellow"), 47),
    (Pair("a green shape", "square"), 39),
    (Pair("a yellow shape", "cross"), 11),
)

#: What the right half shows, by a word of the graph's name.
WAYS = {"CFG": ("cfg", "with CFG"), "Attention map": ("overlay", "where it acts")}


def best(pair: Pair, without: np.ndarray, steered: np.ndarray) -> list[int]:
    """The numbers of the pictures of a batch, those that show the most first; uint8 [batch, height, width, 3]."""
    effect = [
        (not absent(before, pair.negative)) + kept(after, pair.prompt)
        for before, after in zip(read(without), read(steered), strict=True)
    ]
    return sorted(range(len(effect)), key=lambda number: -effect[number])


def thumbnail(pair: Pair, without: np.ndarray, steered: np.ndarray, how: str) -> Image.Image:
    """A square with the two pictures of a batch that show the most: left without, right with the negative prompt.

    Args:
        without, steered: uint8 [batch, height, width, 3], the same noises.
        how: the heading of the right half.
    """
    chosen = best(pair, without, steered)[:2]
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw = ImageDraw.Draw(square)
    half = SIDE // 2
    for column, (pictures, head) in enumerate(((without, "without"), (steered, how))):
        middle = column * half + half // 2
        draw.text((middle, SIDE - BAR // 2), head, INK, font(24), anchor="mm")
        for row, number in enumerate(chosen):
            large = Image.fromarray(pictures[number]).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
            square.paste(large, (middle - PICTURE // 2, BAR + row * PICTURE))
    draw.line((half, BAR, half, SIDE - BAR), QUIET, 2)
    # The frontend lays a badge over the upper left corner.
    draw.text((SIDE - BAR // 2, BAR // 2), f"not: {pair.negative}  (demo model)", QUIET, font(20), anchor="rm")
    return square


def main() -> None:
    base = Path(tempfile.mkdtemp())
    prepare(base)
    make_checkpoint(base / "models" / "checkpoints" / CHECKPOINT)
    with serve(base) as client:
        graphs = Graphs(client.object_info())
        for path in sorted(WORKFLOWS.glob("*.json")):
            if not path.stem.startswith(tuple(sys.argv[1:]) or ""):
                continue
            method, how = next((way for kind, way in WAYS.items() if kind in path.stem), ("nasa", "with"))
            is_demos = CHECKPOINT in path.read_text() or method == "cfg"  # with red all of them show something
            pair, seed = SHOWN[0 if is_demos else int(path.stem[:2]) % len(SHOWN)]
            made = []
            for way in ("none", method):
                graph = graphs.of(way, pair.prompt, pair.negative, seed, 4, ALPHA)
                made += client.run(graph).pictures.values()
            thumbnail(pair, *made, how).save(path.with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    main()
