"""Wan 2.x and its children for control, motion and speech: cross_attn in every block, text beside image tokens."""

import torch
from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, remember_keys, remember_values, steered
from .grid import over_patches
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("text_embedding", "patch_size", "ref_conv")


def blocks(model):
    """0, 1, 2, ... and, in VACE, vace0, vace1, ..."""
    vace = getattr(model, "vace_blocks", ())
    return numbered(block.cross_attn for block in model.blocks) | numbered((block.cross_attn for block in vace), "vace")


def width(model):
    return model.text_embedding[0].in_features


def text(model, conds, timestep):
    return model.text_embedding(conds["c_crossattn"])


def keys_values(attention, text):
    return attention.norm_k(attention.k(text)), attention.v(text)


def forwards(attention):
    """What the projection gets is the sum over text and image tokens; only text is subtracted."""
    return [(attention.norm_q, remember), (attention.o, steered)]


def prompt(attention):
    """Of the text, without the image tokens."""
    return [(attention.norm_k, remember_keys), (attention.v, remember_values)]


def attend(nasa, q, k, v):
    return optimized_attention(q, k, v, heads=nasa.layer.num_heads, transformer_options=nasa.handed(nasa.options))


fit = fit_rows


def spread(model, x, map, conds):
    """A reference picture, whose tokens some models put before the video's, is not steered."""
    strength = over_patches(map, x, model.patch_size)
    if model.ref_conv is not None and "reference_latent" in conds:
        reference = strength[:, : strength.shape[1] // -(-x.shape[2] // model.patch_size[0])]
        strength = torch.cat([torch.zeros_like(reference), strength], dim=1)
    return strength
