"""Prompts as a network sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Encoded prompts: embeddings fp32 [n, tokens, width]; mask [n, tokens], 1 where a token counts, None if all do;
    pooled fp32 [n, width], one vector a prompt, None where the network takes none.

    CLIP is read with its padding, as in pretraining, so it has no mask; T5 has one.
    """

    embeddings: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Text:
        """Those prompts, still a batch. An int would drop that dimension, and is refused."""
        if isinstance(rows, int):
            raise TypeError(f"Text[{rows}] is no batch; write Text[{rows} : {rows + 1}]")
        return self._each(lambda part: part[rows])

    def repeat(self, count: int) -> Text:
        """One prompt for a batch of `count`, without copies."""
        return self._each(lambda part: part.expand(count, *part.shape[1:]))

    def to(self, device: torch.device) -> Text:
        return self._each(lambda part: part.to(device))

    @staticmethod
    def join(*parts: Text) -> Text:
        """One batch after the other; all are of one backbone, so all have as many tokens, and all a mask or none."""
        first, *others = parts
        return first._each(lambda part, *rest: torch.cat([part, *rest]), *others)

    def _each(self, change: Callable[..., Tensor], *others: Text) -> Text:
        """`change` of each part that there is, and of the same part of the others."""
        parts = zip(*((text.embeddings, text.mask, text.pooled) for text in (self, *others)), strict=True)
        return Text(*(None if part[0] is None else change(*part) for part in parts))


class TextShape(NamedTuple):
    """What a network reads of a prompt: tokens and their width, whether there is a mask, and the pooled vector's width,
    0 where there is none."""

    tokens: int
    width: int
    masked: bool = False
    pooled: int = 0

    def filled(self, make: Callable[[tuple[int, ...]], Tensor], count: int = 1) -> Text:
        """`count` prompts, every token counting. make(shape): numbers, zeros or nothing yet."""
        embeddings = make((count, self.tokens, self.width))
        mask = torch.ones(count, self.tokens, device=embeddings.device).long() if self.masked else None
        return Text(embeddings, mask, make((count, self.pooled)) if self.pooled else None)
