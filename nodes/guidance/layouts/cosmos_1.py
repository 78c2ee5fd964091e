"""Cosmos 1: cross-attention in every block, its tokens before the batch."""

from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, remember_keys, remember_values

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("patch_temporal", "patch_spatial")


def blocks(model):
    return {
        str(number): [part.block.attn for part in block.blocks if part.block_type in ("cross_attn", "ca")]
        for number, block in enumerate(model.blocks.values())
    }


def width(model):
    return next(iter(blocks(model).values()))[0].to_k[0].in_features


def text(model, conds, timestep):
    return conds["c_crossattn"]


def keys_values(attention, text):
    projections = attention.to_k, attention.to_v
    parts = [(project(text).unflatten(-1, (attention.heads, -1)), norm) for project, norm in projections]
    return tuple(norm(x.transpose(1, 2)) for x, norm in parts)


def forwards(attention):
    return [(attention.to_q[1], remember), (attention.to_out, _steered)]


def prompt(attention):
    return [(attention.to_k[1], remember_keys), (attention.to_v[1], remember_values)]


def attend(nasa, q, k, v):
    options = nasa.handed(nasa.options)
    return optimized_attention(q, k, v, nasa.layer.heads, skip_reshape=True, transformer_options=options)


fit = fit_rows


def _steered(module, z):
    """The forward of the output projection, for z [tokens, batch, channels]."""
    return module.nasa_before(module.nasa.steer(z.transpose(0, 1)).transpose(0, 1))


def patch(model):
    return model.patch_temporal, model.patch_spatial, model.patch_spatial
