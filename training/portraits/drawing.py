"""The portraits themselves: 64 x 64 pixels, drawn with Pillow at eight times that size."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .world import PEOPLE, WITH, Item

PIXELS, SUPERSAMPLING = 64, 8

BACKGROUNDS = {"blue": (112, 170, 236), "green": (118, 196, 128), "yellow": (255, 226, 112), "pink": (245, 156, 184)}
HAIR = {"black": (46, 42, 52), "brown": (128, 80, 46), "blond": (226, 178, 84), "red": (204, 88, 36)}
OFFSETS = {"centre": (0, 0), "left": (-5, 0), "right": (5, 0), "high": (0, -3), "low": (0, 4)}
SCALES = {"small": 0.82, "large": 1.0}
SKIN, BLUSH, INK, WHITE = (248, 212, 178), (240, 160, 140), (40, 34, 44), (255, 255, 255)
SHIRTS = {"man": (58, 82, 120), "woman": (142, 70, 140)}
HAT, BAND, GOLD, LENS = (92, 60, 140), (250, 190, 60), (255, 205, 50), (225, 240, 250)
TONGUE = (232, 96, 110)


@dataclass(frozen=True)
class Variation:
    """What makes two drawings of one portrait differ: pixels, a factor on the size, and levels added to colours."""

    offset: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hair: tuple[float, float, float] = (0.0, 0.0, 0.0)


PLAIN = Variation()


def draw_variation(random: np.random.RandomState) -> Variation:
    """A small random one."""
    return Variation(
        tuple(random.uniform(-1.5, 1.5, 2)),
        random.uniform(0.96, 1.04),
        tuple(random.uniform(-10, 10, 3)),
        tuple(random.uniform(-8, 8, 3)),
    )


def _mixed(color, other, share: float) -> tuple[int, int, int]:
    return tuple(round((1 - share) * a + share * b) for a, b in zip(color, other, strict=True))


def _varied(color, levels) -> tuple[int, ...]:
    return tuple(int(np.clip(value + level, 0, 255)) for value, level in zip(color, levels, strict=True))


class _Pen:
    """Draws in the portrait's own units, where the middle of the face is (0, 0) and 64 units are the large picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, centre: tuple[float, float], scale: float):
        self.draw, self.centre, self.scale = draw, centre, scale * SUPERSAMPLING

    def _points(self, *points):
        return [
            tuple(self.centre[axis] * SUPERSAMPLING + point[axis] * self.scale for axis in (0, 1)) for point in points
        ]

    def _width(self, width: float) -> int:
        return round(width * self.scale)

    def ellipse(self, x, y, across, down, fill, outline=None, width=1.0):
        box = self._points((x - across, y - down), (x + across, y + down))
        self.draw.ellipse(box, fill, outline, self._width(width) if outline else 0)

    def polygon(self, fill, *points):
        self.draw.polygon(self._points(*points), fill)

    def line(self, fill, width, *points):
        self.draw.line(self._points(*points), fill, self._width(width), joint="curve")

    def rectangle(self, left, top, right, bottom, radius, fill):
        self.draw.rounded_rectangle(self._points((left, top), (right, bottom)), radius * self.scale, fill)

    def arc(self, x, y, across, down, start, end, fill, width):
        box = self._points((x - across, y - down), (x + across, y + down))
        self.draw.arc(box, start, end, fill, self._width(width))

    def chord(self, x, y, across, down, start, end, fill):
        self.draw.chord(self._points((x - across, y - down), (x + across, y + down)), start, end, fill)


def _mouth(pen: _Pen, item: Item, y: float, across: float) -> None:
    if item["mood"] == "smiling":
        pen.chord(0, y - 2, across, 5.5, 0, 180, INK)
        pen.chord(0, y + 1.2, across * 0.6, 2.2, 0, 180, TONGUE)
    else:
        pen.arc(0, y + 4.5, across * 0.85, 4.6, 190, 350, INK, 1.7)


def _eyes(pen: _Pen, item: Item, y: float, apart: float, white: bool, brow) -> None:
    for side in (-1, 1):
        if white:
            pen.ellipse(side * apart, y, 3.0, 3.2, WHITE)
        pen.ellipse(side * apart, y + 0.3, 1.9, 2.3, INK)
        pen.ellipse(side * apart + 0.7, y - 0.6, 0.7, 0.7, WHITE)
        inner, outer = (-1.6, 0.6) if item["mood"] == "sad" else (0.2, 0.2)
        if brow:
            pen.line(brow, 1.5, (side * (apart - 2.6), y - 5.0 + inner), (side * (apart + 2.6), y - 5.0 + outer))
    if item["mood"] == "sad":
        pen.polygon((92, 180, 250), (apart + 1, y + 3), (apart - 0.9, y + 7.2), (apart + 2.9, y + 7.2))
        pen.ellipse(apart + 1, y + 7.4, 1.9, 1.9, (92, 180, 250))


def _man(pen: _Pen, item: Item, hair) -> None:
    pen.rectangle(-19, 19, 19, 60, 9, SHIRTS["man"])
    pen.polygon(WHITE, (-6, 19), (6, 19), (0, 27))
    pen.rectangle(-5, 10, 5, 22, 3, _mixed(SKIN, INK, 0.12))
    for side in (-1, 1):
        pen.ellipse(side * 14.2, 1, 2.8, 3.8, _mixed(SKIN, INK, 0.08))
    pen.ellipse(0, -4, 14.6, 15.5, hair)
    if item["detail"] == WITH:
        pen.ellipse(0, 6.5, 14.4, 14.0, hair)
    pen.rectangle(-13.6, -11, 13.6, 8, 8, SKIN)
    pen.ellipse(0, 3, 13.6, 13.5, SKIN)
    pen.chord(0, -6.5, 14.4, 12.5, 180, 360, hair)
    if item["detail"] == WITH:
        pen.chord(0, 7, 14.2, 13.4, -8, 188, hair)
        pen.rectangle(-7, 4.8, 7, 8.2, 1.6, hair)
        pen.ellipse(0, 10.6, 6.6, 4.9, _mixed(SKIN, BLUSH, 0.25))


def _woman(pen: _Pen, item: Item, hair) -> None:
    pen.ellipse(0, -3, 17.5, 17.5, hair)
    pen.rectangle(-17.5, -4, 17.5, 25, 6, hair)
    pen.rectangle(-16, 20, 16, 60, 9, SHIRTS["woman"])
    pen.rectangle(-4, 10, 4, 23, 3, _mixed(SKIN, INK, 0.12))
    pen.ellipse(0, 1.5, 12.6, 14.3, SKIN)
    pen.polygon(
        hair, (-13, -1), (-13, -12), (0, -15.5), (13, -12), (13, -1), (9.5, -6.5), (3, -8.5), (-3, -9.5), (-9.5, -4)
    )
    for side in (-1, 1):
        pen.ellipse(side * 8, 7, 2.3, 1.6, BLUSH)
        if item["detail"] == WITH:
            pen.ellipse(side * 13.4, 9.5, 3.1, 3.8, _mixed(GOLD, INK, 0.55))
            pen.ellipse(side * 13.4, 9.5, 2.4, 3.1, GOLD)
    for side in (-1, 1):  # lashes
        pen.line(INK, 1.1, (side * 7.6, -1.6), (side * 10.4, -3.4))


def _cat(pen: _Pen, item: Item, hair) -> None:
    dark, light = _mixed(hair, INK, 0.35), _mixed(hair, WHITE, 0.75)
    pen.ellipse(0, 34, 15, 20, hair)
    for side in (-1, 1):
        pen.polygon(hair, (side * 15, 0), (side * 14.5, -20), (side * 2.5, -11))
        pen.polygon((244, 160, 170), (side * 12.6, -6), (side * 12.7, -15.5), (side * 6, -10.5))
    pen.ellipse(0, 1, 16.5, 13.8, hair)
    for x in (-4, 0, 4):
        pen.line(dark, 1.6, (x, -12), (x * 0.8, -7))
    pen.ellipse(0, 8.4, 7.8, 5.6, light)
    pen.polygon((236, 120, 140), (-2.4, 4.2), (2.4, 4.2), (0, 7))


def _dog(pen: _Pen, item: Item, hair) -> None:
    dark, light = _mixed(hair, INK, 0.4), _mixed(hair, WHITE, 0.75)
    pen.ellipse(0, 34, 14, 20, hair)
    pen.rectangle(-10, 20, 10, 23.5, 1.5, (214, 50, 60))
    pen.ellipse(0, -1, 13.4, 14.5, hair)
    pen.ellipse(0, 9.5, 10, 10.3, light)
    for side in (-1, 1):
        pen.polygon(
            dark, (side * 8, -13), (side * 15, -12), (side * 19, 0), (side * 18, 10), (side * 14, 9), (side * 11.5, -2)
        )
        pen.ellipse(side * 16, 7.5, 3.3, 4.5, dark)
    pen.ellipse(0, 4.2, 4.1, 3.1, INK)
    pen.ellipse(-1.3, 3.2, 1.1, 0.8, (150, 150, 160))


def _whiskers(pen: _Pen) -> None:
    for side in (-1, 1):
        for rise in (-3.0, 0.0, 3.0):
            pen.line(INK, 1.9, (side * 8, 8.5 + rise * 0.5), (side * 22.5, 8.3 + rise * 1.5))
            pen.line(WHITE, 1.1, (side * 8, 8.5 + rise * 0.5), (side * 22.2, 8.3 + rise * 1.5))


def _glasses(pen: _Pen, y: float, apart: float, reach: float) -> None:
    for side in (-1, 1):
        pen.ellipse(side * apart, y, 5.2, 5.2, None, (20, 20, 30), 1.6)
        pen.line((20, 20, 30), 1.6, (side * (apart + 5), y), (side * reach, y - 1.5))
    pen.line((20, 20, 30), 1.6, (-apart + 4.8, y - 0.5), (apart - 4.8, y - 0.5))


def _hat(pen: _Pen, y: float) -> None:
    pen.rectangle(-10.5, y - 15, 10.5, y + 1, 3.5, HAT)
    pen.rectangle(-10.5, y - 5, 10.5, y - 1, 0.5, BAND)
    pen.rectangle(-18, y - 1.6, 18, y + 1.8, 1.7, HAT)


# For each kind: eyes at y, half apart, white in the eyes, mouth at y, half as wide, where the hat sits, temples.
_FACES = {
    "man": (_man, -0.5, 6.0, True, 9.0, 5.0, -11.5, 13.5),
    "woman": (_woman, 0.5, 5.6, True, 9.4, 4.6, -10.5, 12.5),
    "cat": (_cat, -1.5, 6.6, True, 9.2, 3.6, -9.5, 15.5),
    "dog": (_dog, -3.0, 5.6, True, 11.0, 5.0, -11.0, 13.5),
}


def paint(item: Item, variation: Variation = PLAIN) -> np.ndarray:
    """The portrait, uint8 [64, 64, 3]."""
    color = _varied(BACKGROUNDS[item["background"]], variation.background)
    hair = _varied(HAIR[item["hair"]], variation.hair)
    canvas = Image.new("RGB", (PIXELS * SUPERSAMPLING,) * 2, color)
    right, down = OFFSETS[item["position"]]
    centre = (PIXELS / 2 + right + variation.offset[0], 33.5 + down + variation.offset[1])
    pen = _Pen(ImageDraw.Draw(canvas), centre, SCALES[item["size"]] * variation.scale)
    body, eyes, apart, white, mouth, wide, hat, temples = _FACES[item["who"]]
    body(pen, item, hair)
    person = item["who"] in PEOPLE
    if item["glasses"] == WITH:
        for side in (-1, 1):
            pen.ellipse(side * apart, eyes, 5.0, 5.0, LENS)
    _eyes(pen, item, eyes, apart, white, _mixed(hair, INK, 0.3) if person else None)
    _mouth(pen, item, mouth, wide)
    if not person and item["detail"] == WITH:
        _whiskers(pen)
    if item["glasses"] == WITH:
        _glasses(pen, eyes, apart, temples)
    if item["hat"] == WITH:
        _hat(pen, hat)
    return np.asarray(canvas.resize((PIXELS, PIXELS), Image.Resampling.BOX))


def sheet(pictures: np.ndarray, columns: int, enlarge: int = 1) -> Image.Image:
    """Pictures uint8 [N, 64, 64, 3] side by side, with a line of white between them."""
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    step = PIXELS * enlarge + 2
    image = Image.new("RGB", (columns * step - 2, len(rows) * step - 2), WHITE)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            tile = Image.fromarray(picture).resize((PIXELS * enlarge,) * 2, Image.Resampling.NEAREST)
            image.paste(tile, (x * step, y * step))
    return image
