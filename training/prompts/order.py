"""The order in which a run reads its prompts."""

import numpy


class PromptOrder:
    """A seeded permutation for every pass, addressed by position: a run resumes exactly from its position alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._epoch, self._permutation = -1, numpy.empty(0, dtype=int)

    def batch(self, position: int, size: int) -> list[int]:
        """Indices of the prompts at [position, position + size) of the endless shuffled stream."""
        return [self._at(place) for place in range(position, position + size)]

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, self.count)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, numpy.random.default_rng((self.seed, epoch)).permutation(self.count)
        return int(self._permutation[offset])
