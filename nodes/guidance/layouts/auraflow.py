"""AuraFlow: text and picture in two streams, then in one; register tokens before the text, without positions."""

import torch

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .flux import patch as patch
from .naming import double_and_single

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("cond_seq_linear", "register_tokens", "patch_size")
TEXT_FIRST = True


def blocks(model):
    return double_and_single(model.double_layers, model.single_layers)


def width(model):
    return model.cond_seq_linear.in_features


def text(model, conds, timestep):
    """After registers of its own."""
    context = model.cond_seq_linear(conds["c_crossattn"])
    return torch.cat([model.register_tokens.to(context).expand(len(context), -1, -1), context], dim=1)


def text_tokens(block, given, call):
    return call.model.register_tokens.shape[1] + call.conds["c_crossattn"].shape[1]


def alone(block, given, text, positions):
    return {"c": text, "x": no_picture(text, given["x"])} if "c" in given else {"cx": text}
