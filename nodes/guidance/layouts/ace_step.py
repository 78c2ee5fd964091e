"""ACE-Step: cross_attn in every block, over the speaker, the tags and the lyrics together; queries and keys turned."""

from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, remember_keys, remember_values, steered
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"
READS = ("encode", "genre_embedder", "patch_size")


class Layer(NamedTuple):
    """A cross-attention, and the model's table of positions, by which its keys turn."""

    attention: torch.nn.Module
    positions: torch.nn.Module


def blocks(model):
    return numbered(Layer(block.cross_attn, model.rotary_emb) for block in model.transformer_blocks)


def width(model):
    return model.genre_embedder.in_features


def needs(model):
    return ("conditioning_lyrics",)


def text(model, conds, timestep):
    context = conds["c_crossattn"]
    speaker, lyrics = (conds[name][:1].expand(len(context), -1) for name in ("speaker_embeds", "lyric_token_idx"))
    return model.encode(context, None, speaker, lyrics, None, conds["lyrics_strength"])[0]


def keys_values(layer, text):
    attention = layer.attention
    return _turned(layer, attention.to_k(text)), _heads(attention, attention.to_v(text))


def forwards(layer):
    attention = layer.attention
    return [(attention, _with_positions), (attention.to_q, remember), (attention.to_out[0], steered)]


def prompt(layer):
    return [(layer.attention.to_k, remember_keys), (layer.attention.to_v, remember_values)]


def shaped_keys(layer, k):
    return _turned(layer, k)


def shaped_values(layer, v):
    return _heads(layer.attention, v)


def attend(nasa, q, k, v):
    attention = nasa.layer.attention
    q = attention.processor.apply_rotary_emb(_heads(attention, q), nasa.positions)
    options = nasa.handed(nasa.options)
    return optimized_attention(q, k, v, attention.heads, skip_reshape=True, transformer_options=options)


fit = fit_rows


def _heads(attention, x):
    return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def _turned(layer, keys):
    """By heads, by the places of their own text."""
    k = _heads(layer.attention, keys)
    return layer.attention.processor.apply_rotary_emb(k, layer.positions(k, seq_len=k.shape[2]))


def _with_positions(attention, *args, rotary_freqs_cis=None, **more):
    attention.nasa.positions = rotary_freqs_cis
    return attention.nasa_before(*args, rotary_freqs_cis=rotary_freqs_cis, **more)


def patch(model):
    return tuple(model.patch_size)
