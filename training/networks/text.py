"""Prompts as a network sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Encoded prompts: embeddings fp32 [n, tokens, width]; mask [n, tokens], 1 where a token counts, None if all do.

    CLIP is read with its padding, as in pretraining, so it has no mask; T5 has one.
    """

    embeddings: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Text:
        """Those prompts, still a batch. An int would drop that dimension, and is refused."""
        if isinstance(rows, int):
            raise TypeError(f"Text[{rows}] is no batch; write Text[{rows} : {rows + 1}]")
        return Text(self.embeddings[rows], None if self.mask is None else self.mask[rows])

    def repeat(self, count: int) -> Text:
        """One prompt for a batch of `count`, without copies."""
        mask = None if self.mask is None else self.mask.expand(count, -1)
        return Text(self.embeddings.expand(count, -1, -1), mask)

    def to(self, device: torch.device) -> Text:
        return Text(self.embeddings.to(device), None if self.mask is None else self.mask.to(device))

    @staticmethod
    def join(*parts: Text) -> Text:
        """One batch after the other; all are of one backbone, so all have as many tokens, and all a mask or none."""
        masks = [part.mask for part in parts if part.mask is not None]
        return Text(torch.cat([part.embeddings for part in parts]), torch.cat(masks) if masks else None)
