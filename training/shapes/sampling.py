"""Latents of either demo model, for its record: the teacher's by many steps, a student's by its own."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..method.warm_start import ddim_sample
from ..networks.backbones.latent_diffusion import LatentDiffusion
from ..networks.text import Text
from ..recipe.config import Start

TOGETHER = 50  # captions at a time
LATER = 1000  # from a step's seed to the next one's


def _noise(backbone: LatentDiffusion, captions: list[str], seed: int) -> Tensor:
    return torch.randn(len(captions), *backbone.latent_shape(), generator=torch.Generator().manual_seed(seed))


def _batches(backbone: LatentDiffusion, captions: list[str]):
    """Slices of ``captions`` and their text; every caption is encoded once."""
    words = {caption: backbone.encode([caption]) for caption in sorted(set(captions))}
    for first in range(0, len(captions), TOGETHER):
        part = slice(first, first + TOGETHER)
        yield part, Text.join(*(words[caption] for caption in captions[part]))


@torch.no_grad()
def many_steps(backbone: LatentDiffusion, captions: list[str], steps: int, scale: float, seed: int = 0) -> Tensor:
    """Latents float32 [N, c, h, w], one a caption, by the teacher at CFG ``scale``."""
    noise, null, latents = _noise(backbone, captions, seed), backbone.encode([""]), []

    def predict(x, t, words):
        return backbone.predict(backbone.network, x, t, words)

    for part, words in tqdm(_batches(backbone, captions), desc=f"teacher, {steps} steps, CFG {scale:g}"):
        empty = null.repeat(len(words))
        latents.append(ddim_sample(backbone.sampler, predict, noise[part], words, empty, steps, scale))
    return torch.cat(latents)


@torch.no_grad()
def by_student(
    backbone: LatentDiffusion, network: nn.Module, start: Start, captions: list[str], seed: int = 0
) -> Tensor:
    """Latents float32 [N, c, h, w], one a caption, by the steps of a student, ``network``."""
    noises = [_noise(backbone, captions, seed + LATER * step) for step in range(start.steps)]
    return torch.cat(
        [
            backbone.all_steps(network, [noise[part] for noise in noises], words, start)
            for part, words in _batches(backbone, captions)
        ]
    )
