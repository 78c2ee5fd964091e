"""ERNIE-Image."""

import torch

from .explicit import attend, merged, split, unpatchified


def ernie(network, steer, x, timestep, context, **_):
    height, width = x.shape[-2:]
    texts = [network.text_proj(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]
    image = network.x_embedder(x)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    ids = torch.nn.functional.pad(places, (1, 0), value=context.shape[1])
    time = network.time_embedding(network.time_proj(timestep))
    shift, scale, gate, shift2, scale2, gate2 = network.adaLN_modulation(time)[:, None].chunk(6, dim=-1)

    def turned(x, ids):
        """Rope of the pairs (n, n + half), each angle for two pairs in a row."""
        angles = [
            ids[:, n : n + 1].double() / network.pos_embed.theta ** (torch.arange(0, d, 2).double() / d)
            for n, d in enumerate(network.pos_embed.axes_dim)
        ]
        angles, (first, second) = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1), x.double().chunk(2, dim=-1)
        return (x.double() * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()).float()

    def qkv(attention, x, ids):
        q, k, v = (split(to(x), attention.heads) for to in (attention.to_q, attention.to_k, attention.to_v))
        return turned(attention.norm_q(q), ids), turned(attention.norm_k(k), ids), v

    def left(layer, hidden, z):
        hidden = hidden + gate * layer.self_attention.to_out[0](merged(z))
        return hidden + gate2 * layer.mlp(layer.adaLN_mlp_ln(hidden) * (1 + scale2) + shift2)

    for number, layer in enumerate(network.layers):
        qi, ki, vi = qkv(layer.self_attention, layer.adaLN_sa_ln(image) * (1 + scale) + shift, ids)
        pairs = [
            qkv(
                layer.self_attention,
                layer.adaLN_sa_ln(text) * (1 + scale) + shift,
                torch.nn.functional.pad(torch.arange(text.shape[1])[:, None], (0, 2)),
            )
            for text in texts
        ]
        z = steer.z(str(number), qi, pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])
        own = [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        image = left(layer, image, z)
        texts = [left(layer, text, z) for text, z in zip(texts, own, strict=True)]
    return unpatchified(network.final_linear(network.final_norm(image, time)), 1, (height, width), x.shape)
