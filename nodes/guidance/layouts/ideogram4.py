"""Ideogram 4: text and picture in one stream; a call without a prompt has no text in it at all."""

import torch
from comfy.ldm.flux.math import rope

from ..side_stream import forwards as forwards
from .naming import numbered
from .padding import without_padding

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("llm_cond_norm", "llm_cond_proj", "embed_image_indicator", "head_dim", "rope_theta")
TEXT_FIRST = True


def blocks(model):
    return numbered(model.layers)


def width(model):
    return model.llm_cond_proj.in_features


def text(model, conds, timestep):
    """Without the tokens that its attention mask leaves out, which neither the others nor the picture see."""
    context = model.llm_cond_proj(model.llm_cond_norm(without_padding(conds)))
    no_image = torch.zeros(1, dtype=torch.long, device=context.device)
    return context + model.embed_image_indicator(no_image, out_dtype=context.dtype)


def patch(model):
    return 1, 1


def positions(model, tokens, call):
    """Text counts along all axes alike, so that it does not matter which of them a channel turns with."""
    return rope(torch.arange(tokens, device=call.x.device)[None], model.head_dim, model.rope_theta).unsqueeze(2)


def alone(block, given, text, positions):
    return {"x": text, "attn_mask": None, "freqs_cis": positions}
