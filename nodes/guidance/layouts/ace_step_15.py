"""ACE-Step 1.5: cross_attn in every layer of the decoder, over the lyrics, the timbre and the tags together."""

import torch
from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, remember_keys, remember_values, steered
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("encoder", "null_condition_emb")


def blocks(model):
    return numbered(layer.cross_attn for layer in model.decoder.layers)


def width(model):
    return model.encoder.text_projector.in_features


def needs(model):
    return ("conditioning_lyrics",)


def text(model, conds, timestep):
    """With the timbre of the negative's own reference sound, which without one is silence."""
    context = conds["c_crossattn"]
    lyrics, timbre = (conds[name][:1].expand(len(context), -1, -1) for name in ("lyric_embed", "refer_audio"))
    order = torch.arange(len(context), device=context.device)
    encoded, _ = model.encoder(context, None, lyrics, None, timbre.movedim(-1, -2), order)
    if "replace_with_null_embeds" in conds:
        encoded = model.null_condition_emb.to(encoded).expand_as(encoded)
    return model.decoder.condition_embedder(encoded)


def keys_values(attention, text):
    k, v = (project(text).unflatten(-1, (-1, attention.head_dim)) for project in (attention.k_proj, attention.v_proj))
    return attention.k_norm(k).transpose(1, 2), v.transpose(1, 2)


def forwards(attention):
    return [(attention.q_norm, remember), (attention.o_proj, steered)]


def prompt(attention):
    return [(attention.k_norm, remember_keys), (attention.v_proj, remember_values)]


def shaped_keys(attention, k):
    return k.transpose(1, 2)


def shaped_values(attention, v):
    return v.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def attend(nasa, q, k, v):
    options = {"skip_reshape": True, "low_precision_attention": False, "enable_gqa": k.shape[1] < q.shape[2]}
    options["transformer_options"] = nasa.handed({})
    return optimized_attention(q.transpose(1, 2), k, v, nasa.layer.num_heads, **options)


fit = fit_rows


def patch(model):
    return (model.decoder.patch_size,)
