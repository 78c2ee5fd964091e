"""Stable Audio 1 and 3: cross_attn in every layer, over the text and the seconds; in 3 the difference of two."""

import torch
from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, remember_both, steered
from .grid import over_patches
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("to_cond_embed", "global_cond_type")


def blocks(model):
    return numbered(layer.cross_attn for layer in model.transformer.layers)


def width(model):
    return model.to_cond_embed[0].in_features


def text(model, conds, timestep):
    return model.to_cond_embed(conds["c_crossattn"])


def keys_values(attention, text):
    return _split(attention, attention.to_kv(text))


def forwards(attention):
    return [(attention.to_q, remember), (attention.to_out, steered)]


def prompt(attention):
    return [(attention.to_kv, remember_both)]


def shaped_keys(attention, both):
    return _split(attention, both)[0]


def shaped_values(attention, both):
    return _split(attention, both)[1]


def attend(nasa, q, k, v):
    """Of two attentions the first weighs the texts."""
    attention, parts = nasa.layer, _parts(nasa.layer)
    v = v.repeat_interleave(attention.num_heads // v.shape[1], dim=1)
    k = k.repeat_interleave(parts * attention.num_heads // k.shape[1], dim=1)
    q = _normed(attention, "q_norm", _heads(attention, q))
    options = {"skip_reshape": True, "low_precision_attention": False, "transformer_options": nasa.handed(nasa.options)}
    pairs = zip(q.chunk(parts, dim=1), k.chunk(parts, dim=1), strict=True)
    z, *less = (optimized_attention(*pair, v, attention.num_heads, **options) for pair in pairs)
    return z - less[0] if less else z


fit = fit_rows


def spread(model, x, map, conds):
    """Tokens for the timestep and for memory come before those of the sound, and are not steered."""
    before = getattr(model.transformer, "num_memory_tokens", 0) + (model.global_cond_type == "prepend")
    return torch.nn.functional.pad(over_patches(map, x, (getattr(model, "patch_size", 1),)), (0, 0, before, 0))


def _split(attention, kv):
    """Where there are two attentions, they share V, and their K are heads of one."""
    width = kv.shape[-1] // (_parts(attention) + 1)
    k, v = (_heads(attention, x) for x in (kv[..., :-width], kv[..., -width:]))
    return _normed(attention, "k_norm", k), v


def _parts(attention):
    return 2 if getattr(attention, "differential", False) else 1


def _heads(attention, x):
    return x.unflatten(-1, (-1, attention.dim_heads)).transpose(1, 2)


def _normed(attention, norm, x):
    if hasattr(attention, norm):
        return getattr(attention, norm)(x)
    return torch.nn.functional.normalize(x, dim=-1) if attention.qk_norm in (True, "l2") else x
