"""LTX-Video: attn2 in every block, its text tokens projected by caption_projection."""

import torch
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked

from .grid import over_patches

TEXT_CHANGES_WITH_TIME = False
NEEDS = ()


def blocks(model):
    """None where attn2's text is shifted and scaled for every block and timestep (LTX 2.3)."""
    if getattr(model, "cross_attention_adaln", False):
        return {}
    return {str(number): [block.attn2] for number, block in enumerate(model.transformer_blocks)}


def width(model):
    projection = model.caption_projection
    return model.transformer_blocks[0].attn2.to_k.in_features if projection is None else projection.linear_1.in_features


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
    return [(attention, _forward)]


def spread(model, x, map, conds):
    return over_patches(map, x, (1, 1, 1))


def _forward(self, x, context=None, mask=None, transformer_options=None, **kwargs):
    """CrossAttention.forward of LTX-Video with NASA."""
    q = self.q_norm(self.to_q(x))
    options = {"attn_precision": self.attn_precision, "transformer_options": transformer_options or {}}

    def attend(k, v):
        return optimized_attention(q, k, v, self.heads, **options)

    (k, v), negatives = self.nasa.project(keys_values, context)
    z = attend(k, v) if mask is None else optimized_attention_masked(q, k, v, self.heads, mask, **options)
    z = self.nasa.steer(z, negatives, attend)
    if getattr(self, "to_gate_logits", None) is not None:
        z = (z.unflatten(-1, (self.heads, -1)) * (2 * torch.sigmoid(self.to_gate_logits(x))).unsqueeze(-1)).flatten(2)
    return self.to_out(z)
