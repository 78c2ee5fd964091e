"""UNets with a cross-attention called attn2 in every transformer block: SD 1.x, SD 2.x, SDXL, their children, SVD."""

from collections.abc import Iterable
from math import log
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import optimized_attention

from ..steering import remember, remember_keys, remember_values, rows, steered

TEXT_CHANGES_WITH_TIME = False
RULE = "nasa"


class Layer(NamedTuple):
    """A cross-attention, and whether its batch is of places and its tokens are the frames (SVD), not the reverse."""

    attention: torch.nn.Module
    over_time: bool


def blocks(unet: torch.nn.Module) -> dict[str, list[Layer]]:
    """in1, in2, ... mid, ... out11, by ComfyUI's numbers of input_blocks and output_blocks."""
    sides = {f"in{number}": parts for number, parts in enumerate(unet.input_blocks)}
    sides["mid"] = unet.middle_block or ()
    sides |= {f"out{number}": parts for number, parts in enumerate(unet.output_blocks)}
    found = {name: [attention for part in parts for attention in _attentions(part)] for name, parts in sides.items()}
    return {name: attentions for name, attentions in found.items() if attentions}


def _attentions(part: torch.nn.Module) -> list[Layer]:
    return [
        Layer(block.attn2, over_time)
        for name, over_time in (("transformer_blocks", False), ("time_stack", True))
        if hasattr(part, "transformer_blocks")
        for wrapped in getattr(part, name, ())
        for block in _unwrapped(wrapped)
        if getattr(block, "attn2", None) is not None and not block.switch_temporal_ca_to_sa
    ]


def _unwrapped(block: torch.nn.Module) -> Iterable[torch.nn.Module]:
    """The block itself; where another pack put a module of its own around it, all modules in there."""
    # Walking all of SDXL takes 3 ms, and a picture asks several times.
    return (block,) if hasattr(block, "attn2") else block.modules()


def width(unet):
    return next(iter(blocks(unet).values()))[0].attention.to_k.in_features


def text(unet, conds, timestep):
    return conds["c_crossattn"]


def patched(text, options):
    """[batch, 2, tokens, width], for K and for V, where an attn2_patch changes them as a hypernetwork does; else text.

    Other such patches, as NegPip's or attention couple's, are about the prompt that they were made with.
    """
    keys = values = text
    for patch in options.get("patches", {}).get("attn2_patch", ()):
        keys, values = _of_every_token(patch, keys, values, options) or (keys, values)
    return text if keys is text and values is text else torch.stack([keys, values], dim=1)


def _of_every_token(patch, keys, values, options):
    """What an attn2_patch makes of K's and V's text; None unless it changes each token by itself."""

    def apply(*texts):
        q = keys.new_zeros(keys.shape[0], 1, keys.shape[2])
        return patch(q, *texts, options | {"cond_or_uncond": [1]})[1:]

    try:
        changed = apply(keys, values)
        mirrored = apply(*(torch.cat([part, part.flip(1)], dim=1) for part in (keys, values)))
    except Exception:  # it needs more than texts
        return None
    parts = list(zip((keys, values), changed, mirrored, strict=True))
    if not all(new.shape == old.shape and twice.shape[1] == 2 * old.shape[1] for old, new, twice in parts):
        return None
    alone = all(torch.allclose(twice, torch.cat([new, new.flip(1)], 1), 1e-2, 1e-3) for _, new, twice in parts)
    return changed if alone and not all(torch.equal(new, old) for old, new, _ in parts) else None


def keys_values(layer, text):
    keys, values = text.unbind(1) if text.ndim == 4 else (text, text)
    return layer.attention.to_k(keys), layer.attention.to_v(values)


def forwards(layer):
    return [(layer.attention.to_q, remember), (layer.attention.to_out, steered)]


def prompt(layer):
    return [(layer.attention.to_k, remember_keys), (layer.attention.to_v, remember_values)]


def attend(nasa, q, k, v):
    attention = nasa.layer.attention
    options = {"attn_precision": attention.attn_precision, "transformer_options": nasa.handed(nasa.options)}
    return optimized_attention(q, k, v, attention.heads, **options)


def spread(unet, x, map, conds):
    """As it is: every resolution of the UNet needs a size of its own."""
    return map


def fit(layer, x, z, chunks):
    return _over_time(x, z, chunks) if layer.over_time else _over_places(x, z, chunks)


def _over_places(x, z, chunks):
    """x, with a row for every row of the model's batch, for z [batch, places, channels]."""
    if x.ndim == 4:
        x = _resized(x, z.shape[1]).flatten(2).transpose(1, 2)
    return rows(x, z.shape[0], chunks)


def _over_time(x, z, chunks):
    """x, with a row for every frame of the batch, for z [videos * places, frames, channels]."""
    frames = z.shape[1]
    if x.shape[0] == 1:
        return rows(x, z.shape[0], chunks)
    videos = x.shape[0] // frames
    places = z.shape[0] // videos
    if x.ndim == 3:
        return x[::frames].repeat_interleave(places, dim=0)
    x = _resized(x, places).view(videos, frames, places)
    return x.transpose(1, 2).reshape(-1, frames, 1)


def _resized(map, places):
    """map [batch, 1, height, width] in the size of a layer with so many places, which has the picture's proportions."""
    height, width = map.shape[2:]
    sizes = [(n, places // n) for n in range(1, places + 1) if places % n == 0]
    size = min(sizes, key=lambda size: abs(log(size[0] / size[1]) - log(height / width)))
    return torch.nn.functional.interpolate(map, size=size, mode="bilinear")
