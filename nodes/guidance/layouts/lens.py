"""Lens: picture and text in two streams, the picture first; several layers of the text encoder side by side."""

import torch

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import numbered
from .padding import without_padding

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("txt_norm", "txt_in", "pos_embed", "multi_layer_encoder_feature")
TEXT_FIRST = False


def blocks(model):
    return numbered(model.transformer_blocks)


def width(model):
    return model.txt_in.in_features


def text(model, conds, timestep):
    norms = model.txt_norm if model.multi_layer_encoder_feature else [model.txt_norm]
    layers = without_padding(conds).unflatten(-1, (len(norms), -1)).unbind(2)
    return model.txt_in(torch.cat([norm(layer) for norm, layer in zip(norms, layers, strict=True)], dim=-1))


def patch(model):
    return 1, 1


def positions(model, tokens, call):
    """Of one token before, for the picture that there is not. Text counts from half of the longer side on."""
    first = max(call.x.shape[-2:]) // 2
    ids = torch.arange(first - 1, first + tokens, device=call.x.device)
    return model.pos_embed(ids[None, :, None].expand(1, -1, 3))


def text_tokens(block, given, call):
    return given["encoder_hidden_states"].shape[1]


def alone(block, given, text, positions):
    return {
        "hidden_states": no_picture(text, given["hidden_states"]),
        "encoder_hidden_states": text,
        "attention_mask": None,
        "freqs_cis": positions.expand(len(text), *positions.shape[1:]),
    }
