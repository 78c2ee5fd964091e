"""Chroma and Chroma Radiance: Flux's blocks, which get their modulation as vec, without a pooled vector."""

import torch

from .flux import RETURNS_TEXT as RETURNS_TEXT
from .flux import RULE as RULE
from .flux import TEXT_CHANGES_WITH_TIME as TEXT_CHANGES_WITH_TIME
from .flux import TEXT_FIRST as TEXT_FIRST
from .flux import alone as alone
from .flux import blocks as blocks
from .flux import forwards as forwards
from .flux import patch as patch
from .flux import text as text
from .flux import text_tokens as text_tokens
from .flux import width as width

READS = ("txt_in", "pe_embedder", "params", "patch_size")


def positions(model, tokens, call):
    """Of one token more, as Flux's. Some checkpoints of Radiance count their text along the first axis."""
    ids = torch.zeros(1, tokens + 1, len(model.params.axes_dim), device=call.x.device)
    options, counted = call.options.get("chroma_radiance_options", {}), "use_sequential_txt_ids"
    if options.get(counted, getattr(model.params, counted, False)):
        ids[..., 0] = torch.arange(tokens + 1)
    return model.pe_embedder(ids)
