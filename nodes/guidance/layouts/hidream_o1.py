"""HiDream-O1: words, timestep, picture and reference pictures in a language model; its words see themselves alone."""

import torch

from .. import side_stream
from .grid import patches
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("language_model", "visual", "patch_size")
TEXT_FIRST = True
TEXT_SEES_PICTURE = False


def blocks(model):
    return numbered(model.language_model.layers)


def width(model):
    """Of the numbers of tokens, which its text encoder gives in place of an embedding."""
    return 1


def needs(model):
    return ("text_input_ids",)


def text(model, conds, timestep):
    """With the reference pictures that lie among its own words."""
    from comfy.ldm.hidream_o1.model import IMAGE_TOKEN_ID

    context, length, decoder = conds["c_crossattn"], conds["ar_len"], model.language_model
    ids = conds["input_ids"][: len(context), :length]
    states = decoder.embed_tokens(ids).to(context.dtype)
    if "ref_pixel_values" in conds:
        seen = model.visual(conds["ref_pixel_values"][0], conds["ref_image_grid_thw"][0])
        states[:, ids[0] == IMAGE_TOKEN_ID] = seen.to(context.dtype)
    turned = decoder.compute_freqs_cis(conds["position_ids"][0, :, :length], context.device)
    arguments = {"freqs_cis": tuple(part.to(context.dtype) for part in turned), "past_key_value": ()}
    found = []
    for block in decoder.layers:
        states, (k, v, _) = block(states, optimized_attention=_attention(length, {}), **arguments)
        found.append(torch.stack([k, v], dim=1))
    return tuple(found)


def picture(model, x, conds):
    """After a token for the timestep."""
    return slice(1, 1 + patches(x, patch(model)))


def text_tokens(block, given, call):
    return call.conds["ar_len"]


def forwards(block):
    return [(block, _beside)]


def _beside(block, *args, **kwargs):
    """With the options that the model's attention holds."""
    return side_stream.beside(block, *args, transformer_options=block.nasa.call.options, **kwargs)


def handed(arguments, call):
    options = arguments.pop("transformer_options")
    return arguments | {"optimized_attention": _attention(call.conds["ar_len"], options)}


def _attention(length, options):
    from comfy.ldm.hidream_o1.attention import make_two_pass_attention

    return make_two_pass_attention(length, options)


def patch(model):
    return model.patch_size, model.patch_size
