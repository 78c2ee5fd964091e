"""Prompts as the network sees them: a table where they fit in memory, encoded batch by batch where they don't."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..networks.backbones import LatentDiffusion
from ..networks.text import Text
from .kept import FILE, kept

CHUNK = 32


class PromptEmbeddings:
    """`batch(indices)` gives the encoded prompts of a list; `null` is the null prompt, one row.

    A list is either encoded whole at the start or never kept: a cache filled along the way would encode a prompt in
    other company after a resume, and batches of other sizes round differently.
    """

    def __init__(
        self,
        backbone: LatentDiffusion,
        prompts: Sequence[str],
        megabytes: int,
        null_prompt: str = "",
        stop: Callable[[], bool] = lambda: False,
        run: Path | None = None,
        made_of: str = "",
    ):
        """stop() is asked between chunks of prompts; once true, KeyboardInterrupt is raised.

        run: the folder where a list that is encoded whole is kept, and found by a later start; made_of: of prompts and
        text encoder, as `kept` takes it.
        """
        self.backbone, self.prompts = backbone, prompts
        self.null = backbone.encode([null_prompt])
        self._rows: dict[str, int] = {}  # of each prompt in the table, where there is one
        size = self.null.embeddings.numel() * self.null.embeddings.element_size()
        unique = list(dict.fromkeys(prompts))
        if len(unique) * size > megabytes * 2**20:
            return
        self._rows = {prompt: row for row, prompt in enumerate(unique)}

        def encode() -> Text:
            return _encode(backbone, unique, stop)

        self._table = kept(run / FILE, made_of, backbone.device, encode) if run else encode()

    def batch(self, indices: list[int]) -> Text:
        prompts = [self.prompts[index] for index in indices]
        if not self._rows:
            return self.backbone.encode(prompts)
        return self._table[[self._rows[prompt] for prompt in prompts]]

    def texts(self, prompts: list[str]) -> Text:
        """Other prompts, such as those of the sample grid."""
        return self.backbone.encode(prompts)

    def nulls(self, count: int) -> Text:
        """The null prompt for a batch of `count`, without copies."""
        return self.null.repeat(count)


def _encode(backbone: LatentDiffusion, prompts: Sequence[str], stop: Callable[[], bool]) -> Text:
    chunks = [prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
    table = []
    for chunk in tqdm(chunks, desc="encoding prompts", disable=len(chunks) < 4):
        if table and stop():
            raise KeyboardInterrupt("Stopped while prompts were encoded, before any step; nothing is lost.")
        table.append(backbone.encode(chunk))
    return Text.join(*table)
