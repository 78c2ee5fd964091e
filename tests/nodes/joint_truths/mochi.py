"""Mochi."""

import torch

from .explicit import attend, merged, unpatchified


def mochi(network, steer, x, timestep, context, attention_mask=None, num_tokens=None, transformer_options=None, **_):
    image, size = network.x_embedder(x), network.patch_size
    grid = x.shape[2], *(n // size for n in x.shape[3:])
    scale = (36864 / (grid[1] * grid[2])) ** 0.5
    axes = [torch.arange(grid[0]), *((torch.arange(n) + 0.5 - n / 2) * scale for n in grid[1:])]
    angles = torch.einsum(
        "nd,dhf->hnf", torch.cartesian_prod(*(axis.float() for axis in axes)), network.pos_frequencies
    )
    turn = torch.polar(torch.ones_like(angles), angles)
    vector = network.t_embedder(1 - timestep, out_dtype=x.dtype) + network.t5_y_embedder(context, attention_mask)
    # The last two tokens are padding.
    texts = [network.t5_yproj(text[:, :-2].expand(len(x), -1, -1)) for text in (context, *steer.contexts)]

    def modulated(x, scale):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[:, None])

    def qkv(attention, stream, x):
        parts = getattr(attention, f"qkv_{stream}")(x).unflatten(-1, (3, network.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return *(getattr(attention, f"{n}_norm_{stream}")(part) for n, part in zip("qk", parts, strict=False)), parts[2]

    def turned(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)

    def left(x, z, mlp, gate, scale, gate_mlp):
        x = x + modulated(z, gate.tanh() - 1)
        return x + modulated(mlp(modulated(x, scale)), gate_mlp.tanh() - 1)

    for number, block in enumerate(network.blocks):
        mods = block.mod_x(torch.nn.functional.silu(vector)).chunk(4, dim=1)
        last = number == len(network.blocks) - 1
        mods_text = block.mod_y(torch.nn.functional.silu(vector)).chunk(1 if last else 4, dim=1)
        q, k, v = qkv(block.attn, "x", modulated(image, mods[0]))
        q, k = turned(q), turned(k)
        pairs = [qkv(block.attn, "y", modulated(text, mods_text[0])) for text in texts]
        z = steer.z(str(number), q, pairs[0][1:], (k, v), [pair[1:] for pair in pairs[1:]])
        image = left(image, block.attn.proj_x(merged(z)), block.mlp_x, *mods[1:])
        if not last:
            own = [block.attn.proj_y(merged(attend(qt, (kt, vt, 0), (k, v, 0)))) for qt, kt, vt in pairs]
            texts = [left(text, z, block.mlp_y, *mods_text[1:]) for text, z in zip(texts, own, strict=True)]
    tokens = network.final_layer(image, vector).unflatten(-1, (size * size, -1)).transpose(-1, -2).flatten(2)
    frames = tokens.unflatten(1, (grid[0], -1)).flatten(0, 1)
    picture = unpatchified(frames, size, grid[1:], x.shape)
    return -picture.unflatten(0, (len(x), -1)).transpose(1, 2)
