"""Qwen-Image, Edit and Layered: text and picture in two streams; reference pictures follow the picture."""

import torch

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import numbered
from .padding import without_padding

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("txt_norm", "txt_in", "pe_embedder", "patch_size")
TEXT_FIRST = True


def blocks(model):
    return numbered(model.transformer_blocks)


def width(model):
    return model.txt_in.in_features


def text(model, conds, timestep):
    return model.txt_in(model.txt_norm(without_padding(conds)))


def patch(model):
    return 1, model.patch_size, model.patch_size


def positions(model, tokens, call):
    """Of one token more, for the picture that there is not. Text counts from half of the longer side on."""
    first = max(-(-length // model.patch_size) for length in call.x.shape[-2:]) // 2
    ids = torch.arange(first, first + tokens + 1, device=call.x.device)
    return model.pe_embedder(ids[None, :, None].expand(1, -1, 3))


def text_tokens(block, given, call):
    return given["encoder_hidden_states"].shape[1]


def alone(block, given, text, positions):
    rope = given["image_rotary_emb"]
    changes = {
        "hidden_states": no_picture(text, given["hidden_states"]),
        "encoder_hidden_states": text,
        "encoder_hidden_states_mask": None,
        "image_rotary_emb": positions.to(rope.dtype).expand(len(text), *positions.shape[1:]),
    }
    if given.get("timestep_zero_index") is not None:  # of reference pictures, for which a second half of temb is
        changes |= {"timestep_zero_index": None, "temb": given["temb"].chunk(2)[0]}
    return changes
