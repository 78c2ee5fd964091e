"""What the benchmark has to know of a network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Network:
    """A family at its published size.

    Attributes:
        config_class: its name in comfy.supported_models.
        config: what ComfyUI reads off a checkpoint.
        narrow: what to change in config for a stand-in that tries the benchmark itself.
        width: of its text embeddings.
        tokens: of the positive and the negative text, as ComfyUI hands them to the network.
        channels: of its latents.
        scale: pixels for each latent.
        video: whether its latents have frames, of which a picture is one.
        pooled: the width of its pooled texts.
        options: tokens -> what else its texts carry.
        counted_only: whether its weights are all one number in one place, as they would not fit into memory: its FLOPs
            are counted, and nothing else.
    """

    title: str
    config_class: str
    config: dict
    narrow: dict
    width: int
    tokens: tuple[int, int] = (77, 77)
    channels: int = 4
    scale: int = 8
    video: bool = False
    pooled: int = 1280
    options: Callable[[int], dict] = lambda tokens: {}
    counted_only: bool = False

    def latent(self, pixels: int) -> torch.Tensor:
        """Of a square picture without anything in it."""
        return torch.zeros(1, self.channels, *[1] * self.video, pixels // self.scale, pixels // self.scale)
