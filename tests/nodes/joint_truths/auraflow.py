"""AuraFlow."""

import torch

from .explicit import attend, merged, patchified, unpatchified


def auraflow(network, steer, x, timestep, context, transformer_options=None, **_):
    tokens, _, grid = patchified(x, network.patch_size)
    image = network.apply_pos_embeds(network.init_x_linear(tokens), *x.shape[-2:])
    state = network.t_embedder(timestep, x.dtype)
    texts = [network.cond_seq_linear(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]
    texts = [torch.cat([network.register_tokens.expand(len(x), -1, -1), text], dim=1) for text in texts]

    def normed(x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    def qkv(attention, stream, x):
        q, k, v = (
            getattr(attention, f"w{stream}{part}")(x).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        return normed(q), normed(k), v

    def left(x, z, mlp, mods):
        _, _, gate, shift, scale, gate_mlp = mods
        return x + gate_mlp * mlp(normed(x + gate * z) * (1 + scale) + shift)

    def passed(place, attention, streams, mods, mlps):
        """The picture and the texts after a block, whose parts for each are given in this order."""
        hidden = [image, *texts]
        into = [normed(x) * (1 + mod[1]) + mod[0] for x, mod in zip(hidden, mods, strict=True)]
        (qi, ki, vi), *pairs = (qkv(attention, n, x) for n, x in zip(streams, into, strict=True))
        z = [steer.z(place, qi, pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])]
        z += [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        z = [getattr(attention, f"w{n}o")(merged(part)) for n, part in zip(streams, z, strict=True)]
        return [left(*parts) for parts in zip(hidden, z, mlps, mods, strict=True)]

    count, state = len(texts), state[:, None]
    for number, block in enumerate(network.double_layers):
        mods = [block.modX(state).chunk(6, dim=-1)] + [block.modC(state).chunk(6, dim=-1)] * count
        mlps = [block.mlpX] + [block.mlpC] * count
        image, *texts = passed(f"double{number}", block.attn, [2] + [1] * count, mods, mlps)
    for number, block in enumerate(network.single_layers):
        mods = [block.modCX(state).chunk(6, dim=-1)] * (count + 1)
        image, *texts = passed(f"single{number}", block.attn, [1] * (count + 1), mods, [block.mlp] * (count + 1))
    shift, scale = network.modF(state).chunk(2, dim=-1)
    tokens = network.final_linear(image * (1 + scale) + shift)
    picture = tokens.unflatten(-1, (network.patch_size, network.patch_size, -1)).permute(0, 1, 4, 2, 3).flatten(2)
    return unpatchified(picture, network.patch_size, grid, x.shape)
