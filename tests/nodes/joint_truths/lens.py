"""Lens."""

import torch

from .explicit import patchified, rotated, split, unpatchified
from .two_streams import two_streams


def lens(network, steer, x, timestep, context, attention_mask=None, **_):
    axes, (height, width) = network.pos_embed.axes_dim, x.shape[-2:]
    start = torch.tensor([height - height // 2, width - width // 2])
    ids = torch.nn.functional.pad(patchified(x, 1)[1] - start, (1, 0))
    time = network.time_text_embed(timestep, x)
    several = network.multi_layer_encoder_feature
    norms = network.txt_norm if several else [network.txt_norm]

    def embedded(text):
        parts = text.expand(len(x), -1, -1).chunk(len(norms), dim=-1)
        return network.txt_in(torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=-1))

    def qkv(attention, x, text):
        of_text = text is not None
        q, k, v = (attention.txt_qkv if of_text else attention.img_qkv)(x).chunk(3, dim=-1)
        q, k, v = (split(part, attention.heads) for part in (q, k, v))
        norms = (attention.norm_added_q, attention.norm_added_k) if of_text else (attention.norm_q, attention.norm_k)
        first = max(height // 2, width // 2)
        places = torch.arange(first, first + x.shape[1])[:, None].expand(-1, 3) if of_text else ids
        return *(rotated(norm(part), places, axes) for norm, part in zip(norms, (q, k), strict=True)), v

    def mods(block):
        return [mod(time)[:, None].chunk(6, dim=-1) for mod in (block.img_mod, block.txt_mod)]

    tokens, _, grid = patchified(x, 1)
    texts = [embedded(text) for text in (context, *steer.contexts)]
    image = two_streams(
        network.transformer_blocks, steer, network.img_in(tokens), texts, height * width, mods, qkv,
        lambda attention: (attention.to_out[0], attention.to_add_out),
    )  # fmt: skip
    return unpatchified(network.proj_out(network.norm_out(image, time)), 1, grid, x.shape)
