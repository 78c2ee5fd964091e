"""Krea 2: text, picture and reference pictures in one stream, the text fused from many layers of its encoder."""

import torch

from ..side_stream import forwards as forwards
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("txtfusion", "txtmlp", "txtlayers", "txtdim", "pe_embedder", "patch")
TEXT_FIRST = True


def blocks(model):
    return numbered(model.blocks)


def width(model):
    return model.txtlayers * model.txtdim


def text(model, conds, timestep):
    context = conds["c_crossattn"].unflatten(-1, (model.txtlayers, model.txtdim))
    return model.txtmlp(model.txtfusion(context))


def patch(model):
    return 1, model.patch, model.patch


def positions(model, tokens, call):
    return model.pe_embedder(torch.zeros(1, tokens, 3, device=call.x.device))


def text_tokens(block, given, call):
    return given["transformer_options"]["img_slice"][0]


def alone(block, given, text, positions):
    changes = {"x": text, "freqs": positions, "mask": None}
    if given.get("timestep_zero_index") is not None:  # with references, which stand at time 0: the picture's time
        changes |= {"timestep_zero_index": None, "vec": given["vec"].chunk(2)[0]}
    return changes
