"""Flux 1 and Flux 2: text and picture in two streams, then in one."""

import torch

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import double_and_single

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("txt_in", "vector_in", "pe_embedder", "params", "patch_size")
TEXT_FIRST = True
RETURNS_TEXT = 1


def blocks(model):
    return double_and_single(model.double_blocks, model.single_blocks)


def width(model):
    return model.txt_in.in_features


def needs(model):
    return () if model.vector_in is None else ("pooled_output",)


def text(model, conds, timestep):
    context = conds["c_crossattn"]
    if getattr(model, "txt_norm", None) is not None:  # Ovis-Image
        context = model.txt_norm(context)
    return model.txt_in(context)


def patch(model):
    return model.patch_size, model.patch_size


def positions(model, tokens, call):
    """Of one token more, for the picture that there is not. Flux 2 counts its text along the fourth axis."""
    ids = torch.zeros(1, tokens + 1, len(model.params.axes_dim), device=call.x.device)
    for axis in getattr(model.params, "txt_ids_dims", [3][: ids.shape[2] - 3]):
        ids[..., axis] = torch.arange(tokens + 1)
    return model.pe_embedder(ids)


def text_tokens(block, given, call):
    if "txt" in given:
        call.text_tokens = given["txt"].shape[1]
    return call.text_tokens


def alone(block, given, text, positions):
    positions = positions.expand(len(text), *positions.shape[1:])
    if "txt" in given:
        return {"txt": text, "img": no_picture(text, given["img"]), "pe": positions, "attn_mask": None}
    changes = {"x": text, "pe": positions[:, :, :-1], "attn_mask": None}
    if given.get("modulation_dims"):  # with references, which stand at time 0: the picture's time
        changes["modulation_dims"] = [(0, None, 0)]
    return changes
