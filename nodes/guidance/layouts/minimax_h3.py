"""MiniMax H3: text, conditions, sound and video in one stream without a batch; sound and video are steered.

Both lie in one row of latents, in which nothing has a place: so there is no `spread`.
"""

import torch
from comfy.ldm.minimax.model import rope_rotation_table

from ..side_stream import forwards as forwards
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("condition_proj", "hidden_size", "rope_freqs")
TEXT_FIRST = True
#: Of the kinds of tokens that the model shifts and scales in their own way: text.
KINDS, WORDS = 3, 1


def blocks(model):
    return numbered(model.blocks)


def width(model):
    """Before and after the model's refiner."""
    return model.condition_proj.in_features, model.hidden_size


def text(model, conds, timestep):
    """Its words alone, where a picture lies among them."""
    kinds = conds["minimax_payload"].get("text_token_tags")
    context = conds["c_crossattn"]
    return context if kinds is None else context[:, kinds.flatten() == WORDS]


def picture(model, x, conds):
    layout = conds["minimax_payload"]["layout"]
    first = min(start for start, _, kind in layout.segments if kind in ("audio", "video"))
    text = layout.segments[0][1]
    return slice(first - text, layout.seq_len - text)


def positions(model, tokens, call):
    places = torch.zeros(tokens, 3, dtype=torch.float64)
    places[:, 0] = torch.arange(tokens)
    return rope_rotation_table(model.rope_freqs(places, call.x.device), call.conds["c_crossattn"].dtype)


def alone(block, given, text, positions):
    of_time = given["mod_segments"][0][2] // KINDS * KINDS
    return {"x": text[0], "mod_segments": [(0, text.shape[1], of_time + WORDS)], "rope_freqs": positions}


def text_of(returned):
    return returned.unsqueeze(0)
