"""PixArt-alpha and PixArt-sigma: cross_attn in every block, its text tokens projected by y_embedder."""

from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, steered
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("y_embedder", "patch_size")


def blocks(model):
    return numbered(block.cross_attn for block in model.blocks)


def width(model):
    return model.y_embedder.y_proj.fc1.in_features


def text(model, conds, timestep):
    return model.y_embedder(conds["c_crossattn"].unsqueeze(1), False).squeeze(1)


def keys_values(attention, text):
    return attention.kv_linear(text).chunk(2, dim=-1)


def forwards(attention):
    return [(attention.q_linear, remember), (attention.proj, steered)]


def prompt(attention):
    return [(attention.kv_linear, _remember_both)]


def attend(nasa, q, k, v):
    return optimized_attention(q, k, v, nasa.layer.num_heads, transformer_options=nasa.handed({}))


fit = fit_rows


def _remember_both(module, *args, **kwargs):
    """Both halves of the projection, of a prompt whose rows ComfyUI lays one after the other."""
    both, nasa = module.nasa_before(*args, **kwargs), module.nasa
    if nasa.queries:  # else it is a negative's
        k, v = both.view(len(nasa.queries[-1]), -1, both.shape[-1]).chunk(2, dim=-1)
        nasa.keys, nasa.values = (*nasa.keys, k), (*nasa.values, v)
    return both


def patch(model):
    return model.patch_size, model.patch_size
