"""The demo's pictures, each with a graph inside."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

ZOOM = 3
GAP = 6  # pixels between pictures
MARGIN = 28
PAPER, INK, QUIET = "#ffffff", "#1b1f24", "#6a737d"


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def tiles(pictures: np.ndarray, columns: int) -> Image.Image:
    """Pictures uint8 [N, height, width, 3] enlarged, row after row."""
    height, width = (side * ZOOM for side in pictures.shape[1:3])
    rows = -(-len(pictures) // columns)
    size = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    sheet = Image.new("RGB", size, PAPER)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        large = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        place = column * (width + GAP), row * (height + GAP)
        sheet.paste(large, place)
        corner = place[0] + width - 1, place[1] + height - 1
        ImageDraw.Draw(sheet).rectangle((*place, *corner), outline="#d0d7de")
    return sheet


def grid(
    title: str, subtitle: str, heads: list[str], rows: list[tuple[str, str, list[str], list[np.ndarray]]], columns: int
) -> Image.Image:
    """A table of picture blocks: each row has a name, a second line, a caption under each block, and the blocks."""
    blocks = [[tiles(pictures, columns) for pictures in row[3]] for row in rows]
    width, height = blocks[0][0].size
    label, caption, top = 190, 26 if any(rows[0][2]) else 0, 132
    size = MARGIN + label + len(heads) * (width + MARGIN), top + len(rows) * (height + caption + 18) + MARGIN // 2
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 22), title, INK, font(28))
    draw.text((MARGIN, 60), subtitle, QUIET, font(16))
    for column, head in enumerate(heads):
        draw.text((MARGIN + label + column * (width + MARGIN), 100), head, INK, font(20))
    for row, (name, second, captions, _) in enumerate(rows):
        y = top + row * (height + caption + 18)
        draw.text((MARGIN, y + height // 2 - 22), name, INK, font(18))
        draw.text((MARGIN, y + height // 2 + 4), second, "#b3261e", font(18))
        for column, block in enumerate(blocks[row]):
            x = MARGIN + label + column * (width + MARGIN)
            sheet.paste(block, (x, y))
            if caption:
                draw.text((x, y + height + 3), captions[column], QUIET, font(15))
    return sheet


def without_vs_with(pairs: list[dict], shown: list[dict[str, np.ndarray]], alpha: float, count: int = 6) -> Image.Image:
    """The first pictures of every pair, the same seeds without and with the negative prompt, side by side."""
    rows = []
    for pair, pictures in zip(pairs, shown, strict=True):
        captions = [
            f"no {pair['negative']} in {pair[method]['absent']:.0%} of {pair['n']}, prompt kept in "
            f"{pair[method]['kept']:.0%}"
            for method in ("none", "nasa")
        ]
        blocks = [pictures[method][:count] for method in ("none", "nasa")]
        rows.append((pair["prompt"], f"not: {pair['negative']}", captions, blocks))
    subtitle = f"One step each, NASA with alpha {alpha:g}; the same seeds left and right, the first ones, not chosen"
    heads = ["without the negative prompt", "with the negative prompt"]
    return grid("A negative prompt in one step", subtitle, heads, rows, count)


def alpha_sweep(pairs: list, shown: list[list[np.ndarray]], alphas: tuple[float, ...]) -> Image.Image:
    """A row a prompt, a column an alpha, 2 x 2 seeds in each."""
    rows = [(pair.prompt, f"not: {pair.negative}", [], blocks) for pair, blocks in zip(pairs, shown, strict=True)]
    heads = [f"alpha {alpha:g}" for alpha in alphas]
    return grid(
        "How strongly the negative prompt steers", "One step each; the same four seeds in a row", heads, rows, 2
    )


def attention_map(pairs: list, shown: list[list[np.ndarray]]) -> Image.Image:
    """A row a prompt; without, where the word acts on these, and with."""
    rows = [(pair.prompt, f"not: {pair.negative}", [], blocks) for pair, blocks in zip(pairs, shown, strict=True)]
    heads = ["without the negative prompt", "where the model finds the word", "with the negative prompt"]
    subtitle = "NASA Attention Map on the pictures of the left, by the demo model, which works on 4 x 4 places"
    return grid("Where the negative prompt acts", subtitle, heads, rows, len(shown[0][0]))


def save(image: Image.Image, path: Path, graph: Path) -> None:
    """Write a PNG whole or not at all, with a workflow inside: dropped on ComfyUI, it opens as that graph."""
    partial, info = path.with_suffix(".partial"), PngInfo()
    info.add_text("workflow", json.dumps(json.loads(graph.read_text())))
    image.save(partial, "PNG", pnginfo=info)
    partial.replace(path)
