"""The pictures of the demo world and their captions, drawn and written by code.

A picture is 32 x 32 pixels with one shape of one colour on a plain background. The world is finite (480
pictures), which is what makes its denoiser known exactly (see ``teacher.py``).
"""

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from PIL import Image, ImageDraw

PIXELS = 32
SUPERSAMPLING = 8

ATTRIBUTES = ("shape", "color", "background", "size")  # what captions and readings name
SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {"red": (220, 40, 40), "green": (40, 165, 70), "blue": (50, 80, 225), "yellow": (240, 205, 40)}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (128, 128, 128), "black": (12, 12, 12)}
SIZES = {"small": 7.0, "large": 11.0}  # radius in pixels
POSITIONS = ((0, 0), (-4, -4), (4, -4), (-4, 4), (4, 4))  # offset from the centre in pixels; no caption names it


@dataclass(frozen=True)
class Item:
    """One picture of the world."""

    shape: str
    color: str
    background: str
    size: str
    position: tuple[float, float] = (0, 0)


ITEMS = tuple(Item(*choice) for choice in product(SHAPES, COLORS, BACKGROUNDS, SIZES, POSITIONS))


def outline(shape: str, x: float, y: float, radius: float) -> list[list[tuple[float, float]]]:
    """The polygons whose union is ``shape`` centred at (x, y)."""
    if shape == "circle":
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        return [[(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]]
    if shape == "square":
        half = 0.87 * radius
        return [[(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]]
    if shape == "triangle":
        return [[(x, y - radius), (x + 1.1 * radius, y + 0.85 * radius), (x - 1.1 * radius, y + 0.85 * radius)]]
    if shape == "cross":
        arm = 0.34 * radius
        across = [(x - radius, y - arm), (x + radius, y - arm), (x + radius, y + arm), (x - radius, y + arm)]
        upright = [(x - (py - y), y + (px - x)) for px, py in across]
        return [across, upright]
    raise ValueError(f"unknown shape '{shape}': choose one of {', '.join(SHAPES)}")


def coverage(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """How much of each pixel the shape covers, float32 [32, 32] in 0..1, anti-aliased."""
    canvas = Image.new("L", (PIXELS * SUPERSAMPLING,) * 2, 0)
    draw = ImageDraw.Draw(canvas)
    for polygon in outline(shape, x, y, radius):
        draw.polygon([(px * SUPERSAMPLING, py * SUPERSAMPLING) for px, py in polygon], fill=255)
    small = canvas.resize((PIXELS, PIXELS), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def paint(item: Item, *, radius: float | None = None, color=None, background=None) -> np.ndarray:
    """``item`` as uint8 [32, 32, 3]; radius, colour and background (RGB 0..255) can be overridden."""
    centre = PIXELS / 2
    x, y = centre + item.position[0], centre + item.position[1]
    mask = coverage(item.shape, x, y, radius or SIZES[item.size])[..., None]
    front = np.asarray(COLORS[item.color] if color is None else color, dtype=np.float32)
    back = np.asarray(BACKGROUNDS[item.background] if background is None else background, dtype=np.float32)
    return np.round(mask * front + (1 - mask) * back).clip(0, 255).astype(np.uint8)


_WORDS_FOR_COLOR = (*((color, False) for color in COLORS), (None, True), (None, False))


@dataclass(frozen=True)
class Caption:
    """What a caption says of a picture: a value, a choice ("red or blue"), or None where it says nothing.

    ``colored`` says only that there is a colour; a ``bare`` caption is its words without article and noun.
    """

    shape: str | None = None
    color: str | None = None
    background: str | None = None
    size: str | None = None
    colored: bool = False
    bare: bool = False

    def text(self) -> str:
        """The words: "a small red circle on a gray background", "a colored shape", or bare: "red circle"."""
        color = self.color or ("colored" if self.colored else None)
        noun = self.shape or (None if self.bare else "shape")
        words = [word for word in (self.size, color, noun) if word]
        if not self.bare:
            words = ["a", *words]
        if self.background:
            words += [self.background, "background"] if self.bare else ["on", "a", self.background, "background"]
        return " ".join(words)

    def fits(self, item: Item) -> bool:
        """True if nothing that the caption says is wrong of the picture."""
        said = {name: getattr(self, name) for name in ATTRIBUTES if getattr(self, name)}
        return all(getattr(item, name) in value.split(" or ") for name, value in said.items())


def parse(text: str) -> Caption:
    """The caption behind words written by `Caption.text`; words of other kinds are passed over."""
    words = text.split()

    def said(names):
        return " or ".join(word for word in words if word in names) or None

    return Caption(said(SHAPES), said(COLORS), said(BACKGROUNDS), said(SIZES), "colored" in words)


def _plain_captions() -> tuple[Caption, ...]:
    """Every caption that leaves no choice between values, the empty one first."""
    full = [
        Caption(shape, color, background, size, colored)
        for shape, (color, colored), background, size in product(
            (*SHAPES, None),
            _WORDS_FOR_COLOR,
            (*BACKGROUNDS, None),
            (*SIZES, None),
        )
    ]
    bare = [
        *(Caption(shape=shape, bare=True) for shape in SHAPES),
        *(Caption(color=color, bare=True) for color in COLORS),
        *(Caption(background=background, bare=True) for background in BACKGROUNDS),
        *(Caption(size=size, bare=True) for size in SIZES),
        *(Caption(shape, color, bare=True) for shape, color in product(SHAPES, COLORS)),
    ]
    return (Caption(bare=True), *full, *bare)


def _choices(values) -> list[str]:
    """Every choice between two or three of four values: "red or blue"."""
    return [" or ".join(chosen) for count in (2, 3) for chosen in combinations(values, count)]


def _choice_captions() -> tuple[Caption, ...]:
    """Captions that leave a choice of colours, of shapes, or of both."""
    shapes, colors = _choices(SHAPES), _choices(COLORS)
    return (
        *(Caption(shape, color) for shape, color in product((*SHAPES, None, *shapes), colors)),
        *(Caption(shape, color, colored=colored) for shape in shapes for color, colored in _WORDS_FOR_COLOR),
    )


CAPTIONS = _plain_captions() + _choice_captions()
