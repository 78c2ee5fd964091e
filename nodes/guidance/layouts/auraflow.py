"""AuraFlow: text and picture in two streams, then in one; register tokens before the text, without positions."""

import torch

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .flux import picture as picture
from .flux import spread as spread

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("cond_seq_linear", "register_tokens", "patch_size")
TEXT_FIRST = True


def blocks(model):
    """double0, double1, ..., single0, single1, ..."""
    streams = {"double": model.double_layers, "single": model.single_layers}
    return {f"{name}{number}": [block] for name, part in streams.items() for number, block in enumerate(part)}


def width(model):
    return model.cond_seq_linear.in_features


def needs(model):
    return ()


def text(model, conds, timestep):
    """After registers of its own."""
    context = model.cond_seq_linear(conds["c_crossattn"])
    return torch.cat([model.register_tokens.to(context).expand(len(context), -1, -1), context], dim=1)


def positions(model, tokens, call):
    return None


def text_tokens(block, given, call):
    return call.model.register_tokens.shape[1] + call.conds["c_crossattn"].shape[1]


def alone(block, given, text, positions):
    return {"c": text, "x": no_picture(text, given["x"])} if "c" in given else {"cx": text}


def text_of(block, returned):
    return returned[0] if isinstance(returned, tuple) else returned
