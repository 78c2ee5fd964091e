"""Krea 2."""

import torch

from .explicit import attend, merged, patchified, rotated, unpatchified


def krea2(network, steer, x, timestep, context, ref_latents=(), ref_latents_method=None, **_):
    from comfy.ldm.flux.layers import timestep_embedding

    rope, size = network.pe_embedder, network.patch

    def normed(norm, x):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], norm.scale + 1, norm.eps)

    def qkv(attention, hidden, ids=None):
        q, k, v = (
            linear(hidden).unflatten(-1, (-1, attention.headdim)).transpose(1, 2)
            for linear in (attention.wq, attention.wk, attention.wv)
        )
        q, k = normed(attention.qknorm.qnorm, q), normed(attention.qknorm.knorm, k)
        if ids is not None:
            q, k = (rotated(part, ids, rope.axes_dim, rope.theta) for part in (q, k))
        return q, *(part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))

    def gated(attention, hidden, z):
        return attention.wo(merged(z) * attention.gate(hidden).sigmoid())

    def fused(blocks, hidden):
        for block in blocks:
            into = normed(block.prenorm, hidden)
            q, k, v = qkv(block.attn, into)
            hidden = hidden + gated(block.attn, into, attend(q, (k, v, 0)))
            hidden = hidden + block.mlp(normed(block.postnorm, hidden))
        return hidden

    def read(text):
        """Of every token, the layers of its encoder together; then the tokens."""
        fusion, text = network.txtfusion, text.expand(len(x), -1, -1)
        layers = fused(fusion.layerwise_blocks, text.unflatten(-1, (network.txtlayers, -1)).flatten(0, 1))
        one = fusion.projector(layers.transpose(1, 2)).squeeze(-1).unflatten(0, text.shape[:2])
        return network.txtmlp(fused(fusion.refiner_blocks, one))

    def time(timestep):
        return network.tmlp(timestep_embedding(timestep, network.tdim)[:, None])

    tokens, places, grid = patchified(x[:, :, 0], size)
    count, image, ids = tokens.shape[1], [tokens], [torch.nn.functional.pad(places, (1, 0))]
    for number, latent in enumerate(ref_latents if ref_latents_method else ()):
        tokens, places, _ = patchified(latent[:, :, 0], size)
        image.append(tokens.expand(len(x), -1, -1))
        ids.append(torch.nn.functional.pad(places, (1, 0), value=number + 1))
    image, ids = network.first(torch.cat(image, dim=1)), torch.cat(ids)
    texts, before = [read(text) for text in (context, *steer.contexts)], ref_latents_method == "index_timestep_zero"
    times = [network.tproj(time(timestep)), network.tproj(time(timestep * 0 if before else timestep))]
    has_time = (torch.arange(image.shape[1]) < count)[:, None]

    def entered(block, hidden, mods, ids=None):
        into = normed(block.prenorm, hidden) * (1 + mods[0]) + mods[1]
        return into, qkv(block.attn, into, ids)

    def left(block, hidden, into, z, mods):
        hidden = hidden + mods[2] * gated(block.attn, into, z)
        return hidden + mods[5] * block.mlp(normed(block.postnorm, hidden) * (1 + mods[3]) + mods[4])

    for number, block in enumerate(network.blocks):
        now, mods = (block.mod.lin + times[0]).chunk(6, dim=-1), (block.mod.lin + times[1]).chunk(6, dim=-1)
        mods = [torch.where(has_time, *pair) for pair in zip(now, mods, strict=True)]
        into, (qi, ki, vi) = entered(block, image, mods, ids)
        pairs = [entered(block, text, now) for text in texts]
        prompt, *negatives = (part[1:] for _, part in pairs)
        z = steer.z(str(number), qi[:, :, :count], prompt, (ki, vi), negatives)
        z = torch.cat([z, attend(qi[:, :, count:], (*prompt, 0), (ki, vi, 0))], dim=2)
        image = left(block, image, into, z, mods)
        texts = [
            left(block, text, into, attend(q, (k, v, 0), (ki, vi, 0)), now)
            for text, (into, (q, k, v)) in zip(texts, pairs, strict=True)
        ]
    return unpatchified(network.last(image[:, :count], time(timestep)), size, grid, x.shape)[:, :, None]
