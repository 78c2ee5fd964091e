"""Kandinsky 5: cross_attention in every visual block, its text refined by blocks that know the timestep."""

from comfy.ldm.kandinsky5.model import attention as attention_of_heads

from ..steering import fit_rows, remember, remember_keys, steered
from .grid import over_patches

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
    return {str(number): [block.cross_attention] for number, block in enumerate(model.visual_transformer_blocks)}


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
    k, v = attention.to_key(text), attention.to_value(text)
    k, v = (x.unflatten(-1, (attention.num_heads, -1)) for x in (k, v))
    return attention.key_norm(k), v


def forwards(attention):
    return [(attention.query_norm, remember), (attention.out_layer, steered)]


def prompt(attention):
    return [(attention.key_norm, remember_keys), (attention.to_value, _remember_values)]


def attend(nasa, q, k, v):
    return attention_of_heads(q, k, v, nasa.layer.num_heads, transformer_options=nasa.handed(nasa.options))


fit = fit_rows


def spread(model, x, map, conds):
    return over_patches(map, x, model.patch_size)


def _remember_values(module, *args, **kwargs):
    v = module.nasa_before(*args, **kwargs)
    module.nasa.values = (*module.nasa.values, v.unflatten(-1, (module.nasa.layer.num_heads, -1)))
    return v
