"""Prompts as the network sees them: a table where they fit in memory, encoded batch by batch where they don't."""

import torch
from torch import Tensor
from tqdm import tqdm

from .backbones.stable_diffusion import StableDiffusion

CHUNK = 32


class PromptEmbeddings:
    """`batch(indices)` gives [n, tokens, width] fp32 for the prompts of a list; `null` [tokens, width] is "".

    A list is either encoded whole at the start or never kept: a cache filled along the way would encode a prompt in
    other company after a resume, and batches of other sizes round differently.
    """

    def __init__(self, backbone: StableDiffusion, prompts: list[str], megabytes: int):
        self.backbone, self.prompts = backbone, prompts
        self.null = backbone.encode([""])[0]
        unique = list(dict.fromkeys(prompts))
        self._rows: dict[str, int] = {}
        if len(unique) * self.null.numel() * self.null.element_size() <= megabytes * 2**20:
            chunks = [unique[start : start + CHUNK] for start in range(0, len(unique), CHUNK)]
            table = [backbone.encode(chunk) for chunk in tqdm(chunks, desc="encoding prompts", disable=len(chunks) < 4)]
            self._table = torch.cat(table)
            self._rows = {prompt: row for row, prompt in enumerate(unique)}

    def batch(self, indices: list[int]) -> Tensor:
        prompts = [self.prompts[index] for index in indices]
        if not self._rows:
            return self.backbone.encode(prompts)
        return self._table[torch.tensor([self._rows[prompt] for prompt in prompts], device=self._table.device)]

    def nulls(self, count: int) -> Tensor:
        """The null prompt, [count, tokens, width], without copies."""
        return self.null.expand(count, -1, -1)
