"""Cosmos-Predict2 and Anima: cross_attn in every block."""

from ..steering import fit_rows, remember, remember_keys, remember_values, steered
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("patch_spatial", "patch_temporal")


def blocks(model):
    return numbered(block.cross_attn for block in model.blocks)


def width(model):
    attention = model.llm_adapter.blocks[0].cross_attn if hasattr(model, "llm_adapter") else model.blocks[0].cross_attn
    return attention.k_proj.in_features


def text(model, conds, timestep):
    context = conds["c_crossattn"]
    if "t5xxl_ids" in conds:  # Anima outside of inference mode
        context = model.preprocess_text_embeds(context, conds["t5xxl_ids"], t5xxl_weights=conds["t5xxl_weights"])
    return context


def keys_values(attention, text):
    k, v = attention.k_proj(text), attention.v_proj(text)
    k, v = (x.unflatten(-1, (attention.n_heads, attention.head_dim)) for x in (k, v))
    return attention.k_norm(k), attention.v_norm(v)


def forwards(attention):
    return [(attention.q_norm, remember), (attention.output_proj, steered)]


def prompt(attention):
    return [(attention.k_norm, remember_keys), (attention.v_norm, remember_values)]


def attend(nasa, q, k, v):
    return nasa.layer.attn_op(q, k, v, transformer_options=nasa.handed(nasa.options))


fit = fit_rows


def patch(model):
    return model.patch_temporal, model.patch_spatial, model.patch_spatial
