"""Cosmos-Predict2 and Anima: cross_attn in every block."""

import inspect

from comfy.ldm.cosmos.predict2 import Attention

from .grid import over_patches

TEXT_CHANGES_WITH_TIME = False
NEEDS = ()
TAKES_OPTIONS = "transformer_options" in inspect.signature(Attention.compute_qkv).parameters


def blocks(model):
    return {str(number): [block.cross_attn] for number, block in enumerate(model.blocks)}


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
    return [(attention, _forward)]


def spread(model, x, map, conds):
    return over_patches(map, x, (model.patch_temporal, model.patch_spatial, model.patch_spatial))


def _forward(self, x, context=None, rope_emb=None, transformer_options=None):
    """Attention.forward with NASA. Newer cores let other packs patch q, k and v inside compute_qkv."""
    options = {"transformer_options": transformer_options or {}}
    q, k, v = self.compute_qkv(x, context, rope_emb=rope_emb, **(options if TAKES_OPTIONS else {}))

    def attend(k, v):
        return self.attn_op(q, k, v, **options)

    negatives = [*self.nasa.kept, *(keys_values(self, text) for text in self.nasa.texts)]
    return self.output_dropout(self.output_proj(self.nasa.steer(attend(k, v), negatives, attend)))
