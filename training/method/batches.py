"""The prompts of a batch, and the negative prompts beside them."""

from collections.abc import Sequence

from ..networks.text import Text
from ..prompts.embeddings import PromptEmbeddings
from ..prompts.encode import EncodedPrompts
from ..prompts.order import PromptOrder


class Batch:
    """One batch; a part of it (its rows) is encoded when it is first asked for, and kept.

    prompts: as written. avoided: the negative prompts of NASA-T, one a prompt; None without it.
    """

    def __init__(self, embeddings: PromptEmbeddings | EncodedPrompts, chosen: Sequence[int], avoided: list[str] | None):
        self.embeddings, self.chosen, self.avoided = embeddings, chosen, avoided
        self._texts: dict[int, Text] = {}
        self._away: dict[int, Text] = {}

    def prompt(self, row: int) -> str:
        return self.embeddings.prompts[self.chosen[row]]

    def text(self, rows: slice) -> Text:
        if rows.start not in self._texts:
            self._texts[rows.start] = self.embeddings.batch(self.chosen[rows])
        return self._texts[rows.start]

    def null(self, rows: slice) -> Text:
        return self.embeddings.nulls(rows.stop - rows.start)

    def away(self, rows: slice) -> Text:
        """What the frozen teacher's CFG goes away from: the null prompt, in NASA-T a negative one."""
        if self.avoided is None:
            return self.null(rows)
        if rows.start not in self._away:
            self._away[rows.start] = self.embeddings.texts(self.avoided[rows])
        return self._away[rows.start]


class Batches:
    """Batch number k of distillation, by k alone; with `negatives` (NASA-T) each prompt has one of them beside it."""

    def __init__(
        self, embeddings: PromptEmbeddings | EncodedPrompts, negatives: Sequence[str], batch_size: int, seed: int
    ):
        self.embeddings, self.negatives, self.batch_size = embeddings, negatives, batch_size
        self.order = PromptOrder(len(embeddings.prompts), seed)
        self.negative_order = PromptOrder(len(negatives), seed)

    def __call__(self, number: int) -> Batch:
        position = number * self.batch_size
        chosen = self.order.batch(position, self.batch_size)
        avoided = None
        if self.negatives:
            avoided = [self.negatives[index] for index in self.negative_order.batch(position, self.batch_size)]
        return Batch(self.embeddings, chosen, avoided)
