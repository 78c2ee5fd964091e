"""A labelled sheet of pictures."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

SMALLEST = 256  # pixels: the shorter side of a picture on the sheet, or its label could not be read
WIDTH_TO_HEIGHT = 1.5  # of a sheet of single pictures, about
PAPER, INK = "#1b1f24", "#ffffff"


def sheet(pictures: list[torch.Tensor], labels: list[str]) -> torch.Tensor:
    """All pictures with their labels above them; pictures under 256 pixels are enlarged by a whole factor.

    Args:
        pictures: for every label [batch, height, width, 3], 0 to 1, all of one size.

    Returns:
        IMAGE [1, height, width, 3]: the labels in rows of about equal length for a batch of one; else a column a
        label and a row a picture of the batch.
    """
    batch, height, width, _ = pictures[0].shape
    enlarged = math.ceil(SMALLEST / min(height, width))
    height, width = height * enlarged, width * enlarged
    size = max(16, width // 16)
    font, gap, bar = ImageFont.load_default(size), max(4, width // 64), 2 * size

    columns = len(labels) if batch > 1 else columns_of(len(labels), width / height)
    rows = batch * math.ceil(len(labels) / columns)
    paper = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + bar * rows // batch + gap), PAPER)
    draw = ImageDraw.Draw(paper)
    for number, (label, shown) in enumerate(zip(labels, pictures, strict=True)):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), gap + row * (bar + height + gap)
        draw.text((x + width // 2, y + bar // 2), label, INK, font, anchor="mm")
        for place, picture in enumerate(shown):
            pixels = (picture.float().clamp(0, 1) * 255).round().byte().cpu().numpy()
            pixels = pixels.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
            paper.paste(Image.fromarray(pixels), (x, y + bar + place * (height + gap)))
    return torch.from_numpy(np.array(paper, dtype=np.float32) / 255)[None]


def columns_of(count: int, shape: float) -> int:
    """How many pictures of this width to height go into a row, so that the sheet is a little wider than high."""
    wide = min(count, math.ceil(math.sqrt(WIDTH_TO_HEIGHT * count / shape)))
    return math.ceil(count / math.ceil(count / wide))
