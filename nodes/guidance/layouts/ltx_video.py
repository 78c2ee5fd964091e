"""LTX-Video: attn2 in every block, its text tokens projected by caption_projection."""

from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, steered
from .grid import over_patches

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("caption_projection",)


def blocks(model):
    """None where attn2's text is shifted and scaled for every block and timestep, or Z+ is gated (LTX 2.3)."""
    attentions = [block.attn2 for block in model.transformer_blocks]
    gated = any(getattr(attention, "to_gate_logits", None) is not None for attention in attentions)
    if gated or getattr(model, "cross_attention_adaln", False):
        return {}
    return {str(number): [attention] for number, attention in enumerate(attentions)}


def width(model):
    projection = model.caption_projection
    return model.transformer_blocks[0].attn2.to_k.in_features if projection is None else projection.linear_1.in_features


def needs(model):
    return ()


def text(model, conds, timestep):
    """Without the tokens that its attention mask (1 counts; or added to the logits) leaves out."""
    context, mask = conds["c_crossattn"], conds.get("attention_mask")
    if mask is not None:
        counts = mask > -1 if mask.is_floating_point() else mask != 0
        context = context[:, counts.reshape(-1, counts.shape[-1]).any(dim=0)]
    if model.caption_projection is not None:
        context = model.caption_projection(context)
    return context


def keys_values(attention, text):
    return attention.k_norm(attention.to_k(text)), attention.to_v(text)


def forwards(attention):
    return [(attention.q_norm, remember), (attention.to_out, steered)]


def attend(nasa, q, k, v):
    options = {"attn_precision": nasa.layer.attn_precision, "transformer_options": nasa.options}
    return optimized_attention(q, k, v, nasa.layer.heads, **options)


fit = fit_rows


def spread(model, x, map, conds):
    return over_patches(map, x, (1, 1, 1))
