"""Random numbers by address: the same whatever came before, on whatever device."""

import numpy
import torch
from torch import Tensor

STEP, PREVIEW = 0, 1  # streams


def generator(*key: int) -> torch.Generator:
    """A CPU generator for this key, (seed, stream, number), independent of those for other keys."""
    return torch.Generator().manual_seed(int(numpy.random.SeedSequence(key).generate_state(1, numpy.uint64)[0]))


class Draws:
    """The random numbers of one step, for the whole batch and on the CPU, in the order in which they are asked for.

    Every process draws the whole batch and computes its own rows of it, so several together do what one would.
    """

    def __init__(self, seed: int, step: int, batch_size: int, shape: tuple[int, int, int]):
        self.generator, self.batch_size, self.shape = generator(seed, STEP, step), batch_size, shape

    def latents(self) -> Tensor:
        """Noise, fp32 [batch, c, h, w]."""
        return torch.randn((self.batch_size, *self.shape), generator=self.generator)

    def timesteps(self, bounds: tuple[int, int]) -> Tensor:
        """t ~ U(first, last), both included, int64 [batch]."""
        return torch.randint(bounds[0], bounds[1] + 1, (self.batch_size,), generator=self.generator)

    def places(self, steps: int) -> Tensor:
        """Which of so many steps each sample is asked for, from 0, all alike likely, int64 [batch]."""
        return torch.randint(steps, (self.batch_size,), generator=self.generator)

    def uniform(self) -> Tensor:
        """One number of [0, 1), fp32 []."""
        return torch.rand((), generator=self.generator)
