"""ERNIE-Image: picture and text in one stream, the picture first; its blocks hand attention no options."""

import torch

from .. import side_stream
from ..options_for_attention import handed as handed
from ..options_for_attention import with_options
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("text_proj", "pos_embed", "patch_size", "x_embedder")
TEXT_FIRST = False


def blocks(model):
    return numbered(model.layers)


def width(model):
    return model.hidden_size if model.text_proj is None else model.text_proj.in_features


def text(model, conds, timestep):
    return conds["c_crossattn"] if model.text_proj is None else model.text_proj(conds["c_crossattn"])


def patch(model):
    return model.patch_size, model.patch_size


def positions(model, tokens, call):
    """Text counts along the first axis."""
    ids = torch.zeros(1, tokens, 3, device=call.x.device)
    ids[..., 0] = torch.arange(tokens)
    return model.pos_embed(ids)


def alone(block, given, text, positions):
    positions = positions.expand(len(text), *positions.shape[1:])
    return {"x": text, "rotary_pos_emb": positions, "attention_mask": None}


def forwards(block):
    return [*side_stream.forwards(block), (block.self_attention, with_options(block.self_attention.forward.__func__))]
