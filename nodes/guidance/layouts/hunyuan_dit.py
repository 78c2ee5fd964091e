"""HunyuanDiT: attn2 in every block, over the tokens of CLIP and T5 together."""

import comfy.ops
import torch
from comfy.ldm.hydit.attn_layers import apply_rotary_emb
from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, remember_keys, remember_values, steered
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("mlp_t5", "text_embedding_padding", "text_len", "text_states_dim", "patch_size")


def blocks(model):
    return numbered(block.attn2 for block in model.blocks)


def width(model):
    return model.text_states_dim


def needs(model):
    return ("conditioning_mt5xl", "attention_mask", "attention_mask_mt5xl")


def text(model, conds, timestep):
    """CLIP's and T5's tokens, with learned padding where their masks are 0, as HunYuanDiT.forward makes them."""
    clip, t5 = conds["c_crossattn"], model.mlp_t5(conds["encoder_hidden_states_t5"])
    padding = comfy.ops.cast_to_input(model.text_embedding_padding, clip)
    paddings = padding[: model.text_len], padding[model.text_len :]
    masks = conds["text_embedding_mask"], conds["text_embedding_mask_t5"]
    return torch.cat([_padded(*part) for part in zip((clip, t5), masks, paddings, strict=True)], dim=1)


def _padded(tokens, mask, padding):
    length = padding.shape[0]
    last = torch.where(mask[:, -length:].bool().unsqueeze(2), tokens[:, -length:], padding)
    return torch.cat([tokens[:, :-length], last], dim=1)


def keys_values(attention, text):
    k, v = _keys_values(attention, attention.kv_proj(text))
    return attention.k_norm(k), v


def _keys_values(attention, both):
    return both.unflatten(-1, (2, attention.num_heads, attention.head_dim)).unbind(dim=2)


def forwards(attention):
    return [(attention, _with_positions), (attention.q_norm, remember), (attention.out_proj, steered)]


def prompt(attention):
    return [(attention.k_norm, remember_keys), (attention.kv_proj, remember_values)]


def shaped_values(attention, both):
    return _keys_values(attention, both)[1]


def attend(nasa, q, k, v):
    """Positions turn the queries alone."""
    if nasa.positions is not None:
        q, _ = apply_rotary_emb(q, None, nasa.positions)
    attention = nasa.layer
    heads_first = (part.transpose(1, 2).contiguous() for part in (q, k, v))
    return optimized_attention(
        *heads_first,
        attention.num_heads,
        skip_reshape=True,
        attn_precision=attention.attn_precision,
        transformer_options=nasa.handed({}),
    )


fit = fit_rows


def _with_positions(attention, x, y, freqs_cis_img=None):
    attention.nasa.positions = freqs_cis_img
    return attention.nasa_before(x, y, freqs_cis_img)


def patch(model):
    return model.patch_size, model.patch_size
