"""Sample grids: a row a prompt, a column a seed, labelled, as PNG."""

import bisect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..files import atomic_file
from ..method.draws import PREVIEW, generator
from ..networks.average import Average
from ..networks.backbones import LatentDiffusion
from ..networks.text import Text
from ..recipe.config import Start

MARGIN = 6
SMALLEST = 96  # small pictures are enlarged to at least this many pixels, by whole factors


class Preview:
    """The run's fixed-seed grid: the same noises whenever it is drawn.

    diversity: standard deviation of x0 across noises of one prompt, averaged over latents and prompts; None before
    the first grid.
    """

    def __init__(
        self,
        run: Path,
        backbone: LatentDiffusion,
        student: nn.Module,
        start: Start,
        noises: Sequence[Tensor],
        prompts: list[str],
        text: Text,
    ):
        """noises: as `preview_noises` draws them. text: the encoded prompts, a row each."""
        self.run, self.backbone, self.student, self.start = run, backbone, student, start
        self.prompts, self.text = prompts, text
        self.noises = [noise.to(backbone.device) for noise in noises]
        self.diversity: float | None = None

    @torch.no_grad()
    def latents(self, average: Average | None) -> Tensor:
        """x0 [prompts, columns, c, h, w] of all of the student's steps, by its averaged weights where there are any."""
        columns = len(self.noises[0])
        with average.in_place() if average else nullcontext():
            rows = [
                self.backbone.all_steps(
                    self.student, self.noises, self.text[row : row + 1].repeat(columns), self.start
                )
                for row in range(len(self.text))
            ]
        latents = torch.stack(rows)
        self.diversity = latents.std(dim=1).mean().item()
        return latents

    def save(self, latents: Tensor, step: int) -> numpy.ndarray:
        """Writes RUN/samples/step-N.png; returns it, uint8 [height, width, 3]. Raises UserError (disk)."""
        pictures = self.backbone.decode(latents.flatten(0, 1))
        path = self.run / "samples" / f"step-{step:08d}.png"
        return save_grid(path, self.prompts, pictures.reshape(*latents.shape[:2], *pictures.shape[1:]))


def preview_noises(seed: int, columns: int, shape: tuple[int, int, int], steps: int = 1) -> list[Tensor]:
    """For each of the student's steps, the same for every grid of a run, fp32 [columns, c, h, w]."""
    return [torch.randn((columns, *shape), generator=generator(seed, PREVIEW, step)) for step in range(steps)]


def save_grid(path: str | Path, labels: list[str], pictures: numpy.ndarray) -> numpy.ndarray:
    """Draws pictures uint8 [rows, columns, height, width, 3], each row under its label; returns what it drew.

    Raises UserError (disk).
    """
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
    return numpy.asarray(sheet)


def _fitting(draw: ImageDraw.ImageDraw, label: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`label` in one line, as much of it as fits."""
    shown = " ".join(label[:width].split())  # more letters than pixels cannot fit
    if len(label) <= width and draw.textlength(shown, font) <= width:
        return shown
    fits = bisect.bisect(range(len(shown) + 1), width, key=lambda end: draw.textlength(shown[:end] + "...", font))
    return shown[: max(fits - 1, 0)] + "..."
