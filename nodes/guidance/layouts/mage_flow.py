"""Mage-Flow: Qwen-Image's blocks, over every latent, with text that has no positions."""

import torch

from .qwen_image import READS as READS
from .qwen_image import RULE as RULE
from .qwen_image import TEXT_CHANGES_WITH_TIME as TEXT_CHANGES_WITH_TIME
from .qwen_image import TEXT_FIRST as TEXT_FIRST
from .qwen_image import alone as alone
from .qwen_image import blocks as blocks
from .qwen_image import forwards as forwards
from .qwen_image import text as text
from .qwen_image import text_tokens as text_tokens
from .qwen_image import width as width


def patch(model):
    return 1, 1


def positions(model, tokens, call):
    """Of one token more, for the picture that there is not."""
    return model.pe_embedder(torch.zeros(1, tokens + 1, 3, device=call.x.device))
