"""Random numbers by address: the same whatever came before, on whatever device."""

import numpy
import torch

STEP, PREVIEW = 0, 1  # streams


def generator(*key: int) -> torch.Generator:
    """A CPU generator for this key, (seed, stream, number), independent of those for other keys."""
    return torch.Generator().manual_seed(int(numpy.random.SeedSequence(key).generate_state(1, numpy.uint64)[0]))
