"""Icon and banner of the registry's page, drawn by the demo model: docs/icon.png and docs/banner.png.

    PYTHONPATH=tests:. build/venv/bin/python -m demo.banner

The icon is one picture without the negative prompt on its left and with it on its right, from the same noise.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from comfyui.serve import PACK, prepare, serve
from demo.__main__ import CHECKPOINT, make_checkpoint
from demo.figures import font
from demo.graphs import Graphs
from demo.thumbnails import INK, PAPER, QUIET, SHOWN, best
from training.shapes.measurement import ALPHA

ICON, BANNER = PACK / "docs" / "icon.png", PACK / "docs" / "banner.png"
SIDE = 400  # pixels: the most that the registry takes
WIDE, HIGH, PICTURE = 1260, 540, 190  # 21 : 9


def icon(without: np.ndarray, steered: np.ndarray) -> Image.Image:
    """Left half of the one and right half of the other, around what is drawn; uint8 [height, width, 3]."""
    drawn = np.abs(without.astype(int) - without[0, 0]).max(axis=2) > 60
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    middle, around = (columns[0] + columns[-1] + 1) // 2, (columns[-1] - columns[0]) * 2 // 3
    top = (rows[0] + rows[-1] + 1) // 2 - around
    both = np.concatenate((without[:, :middle], steered[:, middle:]), axis=1)
    both = np.pad(both, ((SIDE, SIDE), (SIDE, SIDE), (0, 0)), mode="edge")
    both = both[SIDE + top :, SIDE + middle - around :][: 2 * around, : 2 * around]
    return Image.fromarray(both).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def banner(columns: list[tuple[str, np.ndarray, np.ndarray]]) -> Image.Image:
    """Each column: what is not wanted, the picture without and with the negative; uint8 [height, width, 3]."""
    whole = Image.new("RGB", (WIDE, HIGH), PAPER)
    draw = ImageDraw.Draw(whole)
    draw.text((36, 42), "SNOOPI", INK, font(40), anchor="lm")
    draw.text((WIDE - 36, 42), "negative prompts for one-step and few-step models", QUIET, font(28), anchor="rm")
    left = 66
    for row, head in enumerate(("without", "with")):
        label = Image.new("RGB", (PICTURE, 50), PAPER)
        ImageDraw.Draw(label).text((PICTURE // 2, 25), head, INK, font(24), anchor="mm")
        whole.paste(label.rotate(90, expand=True), (10, 84 + row * (PICTURE + 6)))
    for column, (unwanted, *pictures) in enumerate(columns):
        x = left + column * (PICTURE + 8)
        for row, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
            whole.paste(large, (x, 84 + row * (PICTURE + 6)))
        draw.text((x + PICTURE // 2, HIGH - 36), f"not: {unwanted}", QUIET, font(24), anchor="mm")
    return whole


def main() -> None:
    base = Path(tempfile.mkdtemp())
    prepare(base)
    make_checkpoint(base / "models" / "checkpoints" / CHECKPOINT)
    columns = []
    with serve(base) as client:
        graphs = Graphs(client.object_info())
        for pair, seed in SHOWN:
            made = []
            for way in ("none", "nasa"):
                made += client.run(graphs.of(way, pair.prompt, pair.negative, seed, 4, ALPHA)).pictures.values()
            number = best(pair, *made)[0]
            columns.append((pair.negative, made[0][number], made[1][number]))
    icon(*columns[0][1:]).save(ICON, optimize=True)
    banner(columns).quantize(128).save(BANNER, optimize=True)


if __name__ == "__main__":
    main()
