"""LTX-Video and LTX-Video 2: attn2 in every block, in LTX 2 audio_attn2 too, with a text of their own each.

In LTX 2.3 the text is shifted and scaled for every block and timestep, and a gate for every head follows Z+.
"""

from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import optimized_attention

from ..steering import fit_rows, remember, remember_gate, remember_keys, remember_values, steered

RULE = "nasa"
READS = ("caption_projection",)


class Layer(NamedTuple):
    """A cross-attention, the block it lies in, and whether its queries are sound instead of video."""

    attention: torch.nn.Module
    block: torch.nn.Module
    sound: bool


def TEXT_CHANGES_WITH_TIME(model):
    return getattr(model, "cross_attention_adaln", False)


def blocks(model):
    """Each with its attention of video and, in LTX 2, of sound."""
    found = {}
    for number, block in enumerate(model.transformer_blocks):
        found[str(number)] = [Layer(block.attn2, block, False)]
        if hasattr(block, "audio_attn2"):
            found[str(number)].append(Layer(block.audio_attn2, block, True))
    return found


def width(model):
    """LTX 2 takes a text before or after its connectors."""
    if hasattr(model, "audio_inner_dim"):
        both = model.cross_attention_dim + model.audio_cross_attention_dim
        if not model.caption_proj_before_connector:
            return model.caption_channels, 2 * model.caption_channels
        return (model.caption_channels, both) if model.caption_projection_first_linear else both
    projection = model.caption_projection
    return model.transformer_blocks[0].attn2.to_k.in_features if projection is None else projection.linear_1.in_features


def text(model, conds, timestep):
    """Without the tokens that its attention mask (1 counts; or added to the logits) leaves out.

    In LTX 2 video's and sound's side by side, as wide as both; in LTX 2.3 the last two tokens are the timestep's shift
    and scale.
    """
    context, mask = conds["c_crossattn"], conds.get("attention_mask")
    if mask is not None:
        counts = mask > -1 if mask.is_floating_point() else mask != 0
        context = context[:, counts.reshape(-1, counts.shape[-1]).any(dim=0)]
    if hasattr(model, "audio_inner_dim"):
        like = [context.new_empty(0, width) for width in (model.inner_dim, model.audio_inner_dim)]
        context = torch.cat(model._prepare_context(context, len(context), like)[0], dim=-1)
    elif model.caption_projection is not None:
        context = model.caption_projection(context)
    if not TEXT_CHANGES_WITH_TIME(model):
        return context
    parts = [(model.prompt_adaln_single, "denoise_mask")]
    if hasattr(model, "audio_inner_dim"):
        parts.append((model.audio_prompt_adaln_single, "audio_denoise_mask"))
    changes = [_shift_and_scale(model, adaln, timestep, conds.get(mask), context.dtype) for adaln, mask in parts]
    return torch.cat([context, torch.cat(changes, dim=-1).expand(len(context), -1, -1)], dim=1)


def _shift_and_scale(model, adaln, timestep, mask, dtype):
    """[1, 2, width]: as compute_prompt_timestep in ComfyUI, which takes the largest timestep of all tokens."""
    if mask is not None:
        timestep = timestep * mask[:, :1].amax()
    timestep = timestep * model.timestep_scale_multiplier
    nothing = {"resolution": None, "aspect_ratio": None}
    return adaln(timestep, nothing, batch_size=1, hidden_dtype=dtype)[0].view(1, 2, -1)


def keys_values(layer, text):
    attention = layer.attention
    width = attention.to_k.in_features
    text = text[..., -width:] if layer.sound else text[..., :width]
    table = getattr(layer.block, "audio_prompt_scale_shift_table" if layer.sound else "prompt_scale_shift_table", None)
    if table is not None:
        shift, scale = (text[:, -2:] + table.to(text)).split(1, dim=1)
        text = text[:, :-2] * (1 + scale) + shift
    return attention.k_norm(attention.to_k(text)), attention.to_v(text)


def forwards(layer):
    attention = layer.attention
    gate = getattr(attention, "to_gate_logits", None)
    gates = [] if gate is None else [(gate, remember_gate)]
    return [(attention.q_norm, remember), *gates, (attention.to_out, steered)]


def prompt(layer):
    attention = layer.attention
    return [(attention, _with_mask), (attention.k_norm, remember_keys), (attention.to_v, remember_values)]


def attend(nasa, q, k, v):
    attention = nasa.layer.attention
    options = {"attn_precision": attention.attn_precision, "transformer_options": nasa.handed(nasa.options)}
    z = optimized_attention(q, k, v, attention.heads, mask=nasa.mask, **options)
    if nasa.gate is None:
        return z
    return (z.unflatten(-1, (attention.heads, -1)) * (2 * nasa.gate.sigmoid()).unsqueeze(-1)).flatten(2)


fit = fit_rows


def _with_mask(attention, x, context=None, mask=None, *args, **kwargs):
    """The prompt's; the negative comes without the tokens that its own leaves out."""
    attention.nasa.mask = mask
    return attention.nasa_before(x, context, mask, *args, **kwargs)


def patch(model):
    return 1, 1, 1
