"""Kandinsky 5: cross_attention in every visual block, its text refined by blocks that know the timestep."""

from comfy.ldm.kandinsky5.model import attention as attention_of_heads

from ..steering import fit_rows, remember, remember_keys, remember_values, steered
from .naming import numbered

TEXT_CHANGES_WITH_TIME = True
RULE = "nasa"
READS = (
    "text_embeddings",
    "pooled_text_embeddings",
    "time_embeddings",
    "text_transformer_blocks",
    "rope_encode_1d",
    "patch_size",
)


def blocks(model):
    return numbered(block.cross_attention for block in model.visual_transformer_blocks)


def width(model):
    return model.text_embeddings.in_layer.in_features


def needs(model):
    return ("pooled_output",)


def text(model, conds, timestep):
    """The negative's own pooled embedding goes with it, as in Kandinsky5.forward_orig."""
    context = conds["c_crossattn"]
    time = model.time_embeddings(timestep, context.dtype) + model.pooled_text_embeddings(conds["y"])
    positions = model.rope_encode_1d(context.shape[1], device=context.device, dtype=context.dtype)
    context = model.text_embeddings(context)
    for block in model.text_transformer_blocks:
        context = block(context, time, positions)
    return context


def keys_values(attention, text):
    k = attention.to_key(text).unflatten(-1, (attention.num_heads, -1))
    return attention.key_norm(k), shaped_values(attention, attention.to_value(text))


def forwards(attention):
    return [(attention.query_norm, remember), (attention.out_layer, steered)]


def prompt(attention):
    return [(attention.key_norm, remember_keys), (attention.to_value, remember_values)]


def shaped_values(attention, v):
    return v.unflatten(-1, (attention.num_heads, -1))


def attend(nasa, q, k, v):
    return attention_of_heads(q, k, v, nasa.layer.num_heads, transformer_options=nasa.handed(nasa.options))


fit = fit_rows


def patch(model):
    return model.patch_size
