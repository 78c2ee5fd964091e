"""Sample grids: a row a prompt, a column a seed, labelled, as PNG."""

from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFont

from .atomic import atomic_file

MARGIN = 6
SMALLEST = 96  # small pictures are enlarged to at least this many pixels, by whole factors


def save_grid(path: str | Path, labels: list[str], pictures: numpy.ndarray) -> None:
    """Draws pictures uint8 [rows, columns, height, width, 3], each row under its label. Raises UserError (disk)."""
    rows, columns, height, width, _ = pictures.shape
    factor = max(1, -(-SMALLEST // min(height, width)))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(14)
    band = 22
    size = (columns * (width + MARGIN) + MARGIN, rows * (height + band + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        top = MARGIN + row * (height + band + MARGIN)
        draw.text((MARGIN, top), _fitting(draw, label, font, size[0] - 2 * MARGIN), fill="black", font=font)
        for column in range(columns):
            picture = Image.fromarray(pictures[row, column]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (MARGIN + column * (width + MARGIN), top + band))
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _fitting(draw: ImageDraw.ImageDraw, label: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if draw.textlength(label, font) <= width:
        return label
    while label and draw.textlength(label + "...", font) > width:
        label = label[:-1]
    return label + "..."
