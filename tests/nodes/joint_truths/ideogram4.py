"""Ideogram 4."""

import torch

from .explicit import attend, merged


def ideogram4(network, steer, x, timestep, context=None, attention_mask=None, **_):
    from comfy.text_encoders.llama import precompute_freqs_cis  # fp32, in which 65536 turns are rounded

    time = network.t_embedding(1 - timestep, dtype=x.dtype)[:, None]
    vector = torch.nn.functional.silu(network.adaln_proj(time))

    def turns(ids):
        options = {"rope_dims": network.mrope_section, "interleaved_mrope": True}
        cos, sin, _ = precompute_freqs_cis(network.head_dim, ids.T, network.rope_theta, **options)
        return cos[0, :, : network.head_dim // 2], sin[0]

    def turned(x, ids):
        (cos, sin), (one, other) = turns(ids), x.chunk(2, dim=-1)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)

    def qkv(layer, hidden, ids, scale):
        attention = layer.attention
        hidden = attention.qkv(layer.attention_norm1(hidden) * (1 + scale))
        q, k, v = hidden.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return turned(attention.norm_q(q), ids), turned(attention.norm_k(k), ids), v

    def left(layer, hidden, z, gate, scale, gate_mlp):
        hidden = hidden + gate.tanh() * layer.attention_norm2(layer.attention.o(merged(z)))
        out = layer.feed_forward(layer.ffn_norm1(hidden) * (1 + scale))
        return hidden + gate_mlp.tanh() * layer.ffn_norm2(out)

    def read(text, mask=None):
        """Padding, at the end, is seen by none but itself."""
        text = text.expand(len(x), -1, -1) if mask is None else text[:, : int(mask[0].sum())]
        text = network.llm_cond_proj(network.llm_cond_norm(text)) + network.embed_image_indicator.weight[0]
        return text, torch.arange(text.shape[1])[:, None].expand(-1, 3)

    rows, columns = x.shape[-2:]
    tokens = x.unflatten(1, (-1, 2, 2)).permute(0, 4, 5, 2, 3, 1).flatten(3).flatten(1, 2)
    image = network.input_proj(tokens) + network.embed_image_indicator.weight[1]
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)) + 65536
    texts = [read(context, attention_mask), *map(read, steer.contexts)]
    for number, layer in enumerate(network.layers):
        scale, *more = layer.adaln_modulation(vector).chunk(4, dim=-1)
        qi, ki, vi = qkv(layer, image, ids, scale)
        pairs = [qkv(layer, *text, scale) for text in texts]
        z = steer.z(str(number), qi, pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])
        image = left(layer, image, z, *more)
        own = [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        texts = [(left(layer, text, z, *more), places) for (text, places), z in zip(texts, own, strict=True)]
    tokens = network.final_layer(image, vector).unflatten(1, (rows, columns)).unflatten(-1, (2, 2, -1))
    return -tokens.permute(0, 5, 3, 4, 1, 2).flatten(1, 3)
