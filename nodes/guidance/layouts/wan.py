"""Wan 2.x and its children for control, motion and speech: cross_attn in every block, text beside image tokens."""

import torch
from comfy.ldm.modules.attention import optimized_attention

from .grid import over_patches

TEXT_CHANGES_WITH_TIME = False
NEEDS = ()


def blocks(model):
    """0, 1, 2, ... and, in VACE, vace0, vace1, ..."""
    found = {str(number): [block.cross_attn] for number, block in enumerate(model.blocks)}
    vace = enumerate(getattr(model, "vace_blocks", ()))
    return found | {f"vace{number}": [block.cross_attn] for number, block in vace}


def width(model):
    return model.text_embedding[0].in_features


def text(model, conds, timestep):
    return model.text_embedding(conds["c_crossattn"])


def keys_values(attention, text):
    return attention.norm_k(attention.k(text)), attention.v(text)


def forwards(attention):
    return [(attention, _forward)]


def spread(model, x, map, conds):
    """A reference picture, whose tokens some models put before the video's, is not steered."""
    strength = over_patches(map, x, model.patch_size)
    if model.ref_conv is not None and "reference_latent" in conds:
        reference = strength[:, : strength.shape[1] // -(-x.shape[2] // model.patch_size[0])]
        strength = torch.cat([torch.zeros_like(reference), strength], dim=1)
    return strength


def _forward(self, x, context, context_img_len=None, transformer_options=None, **kwargs):
    """WanT2VCrossAttention.forward and WanI2VCrossAttention.forward with NASA on the text tokens alone."""
    q = self.norm_q(self.q(x))

    def attend(k, v):
        return optimized_attention(q, k, v, heads=self.num_heads, transformer_options=transformer_options or {})

    images = context[:, :0]
    if hasattr(self, "k_img"):
        images, context = context[:, :context_img_len], context[:, context_img_len:]
    (k, v), negatives = self.nasa.project(keys_values, context)
    z = self.nasa.steer(attend(k, v), negatives, attend)
    if images.shape[1]:
        z = z + attend(self.norm_k_img(self.k_img(images)), self.v_img(images))
    return self.o(z)
