"""HiDream-I1: picture and text in two streams, then in one, the text last; a part of it is new in every block."""

import torch

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .grid import over_patches, patches
from .naming import double_and_single

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("caption_projection", "llama_layers", "pe_embedder", "patch_size")
TEXT_FIRST = False
RETURNS_TEXT = 1
#: A picture to edit, which lies beside the latents, row by row.
AMONG_THE_PICTURE = "image_cond"


def blocks(model):
    return double_and_single(model.double_stream_blocks, model.single_stream_blocks)


def width(model):
    return model.caption_projection[-1].linear.in_features


def needs(model):
    return ("pooled_output", "conditioning_llama3")


def text(model, conds, timestep):
    """T5's, the last of Llama's layers and a layer for the block; then those for the blocks to come."""
    layers = conds["encoder_hidden_states_llama3"].unbind(1)
    *projections, of_t5 = model.caption_projection
    states = [project(layers[n]) for project, n in zip(projections, model.llama_layers, strict=True)]
    return torch.cat([of_t5(conds["c_crossattn"]), states[-1], states[0]], dim=1), *states[1:]


def picture(model, x, conds):
    return slice(0, patches(_with_reference(x, conds), patch(model)))


def positions(model, tokens, call):
    """Of one token more, for the picture that there is not; all are at 0."""
    return model.pe_embedder(torch.zeros(1, tokens + 1, 3, device=call.x.device))


def text_tokens(block, given, call):
    return call.conds["c_crossattn"].shape[1] + 2 * call.conds["encoder_hidden_states_llama3"].shape[2]


def alone(block, given, text, positions):
    positions = positions.expand(len(text), *positions.shape[1:])
    if given.get("text_tokens") is None:
        return {"image_tokens": text, "rope": positions[:, 1:]}
    return {"text_tokens": text, "image_tokens": no_picture(text, given["image_tokens"]), "rope": positions}


def spread(model, x, map, conds):
    if AMONG_THE_PICTURE in conds:
        map = torch.nn.functional.pad(map, (0, conds[AMONG_THE_PICTURE].shape[-1]))
    return over_patches(map, _with_reference(x, conds), patch(model))


def _with_reference(x, conds):
    return torch.cat([x, conds[AMONG_THE_PICTURE]], dim=-1) if AMONG_THE_PICTURE in conds else x


def patch(model):
    return model.patch_size, model.patch_size
