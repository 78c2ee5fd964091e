"""Lumina 2, NewBie and Z-Image."""

import torch

from .explicit import attend, merged, patchified, rotated, unpatchified


def lumina(
    network, steer, x, timestep, context, ref_latents=(), ref_contexts=(), siglip_feats=(), clip_text_pooled=None, **_
):
    size, multiple, count = network.patch_size, network.pad_tokens_multiple or 1, len(ref_latents)
    sees = count > 0 and network.siglip_embedder is not None  # Z-Image Omni, which looks at references twice

    def time(timestep):
        vector = network.t_embedder((1 - timestep) * network.time_scale, dtype=x.dtype)
        if clip_text_pooled is not None:  # NewBie
            pooled = network.clip_text_pooled_proj(clip_text_pooled)
            vector = network.time_text_embed(torch.cat([vector, pooled], dim=-1))
        return vector

    now, before = time(timestep), time(timestep * 0)

    def filled(tokens, ids, token):
        """Up to the multiple, with a learned token at place 0 or, of text, where it goes on."""
        missing = -tokens.shape[1] % multiple
        if missing:
            tokens = torch.cat([tokens, token.expand(len(tokens), missing, -1)], dim=1)
        return tokens.expand(len(x), -1, -1), torch.nn.functional.pad(ids, (0, 0, 0, missing))

    def caption(text, first):
        tokens = network.cap_pad_token[None] if text is None else network.cap_embedder(text)
        tokens = filled(tokens, torch.zeros(0, 3), network.cap_pad_token if multiple > 1 else None)[0]
        ids = torch.nn.functional.pad(torch.arange(tokens.shape[1])[:, None] + 1 + first, (0, 2))
        return tokens, ids, torch.full((tokens.shape[1],), first_of_prompt)

    def cut(x):
        tokens, places, grid = patchified(x, size)
        return tokens.unflatten(-1, (-1, size * size)).transpose(-1, -2).flatten(2), places, grid

    words, seen, pictures, first = [], [], [], 0
    captions = [*ref_contexts[:count], *[None] * (count - len(ref_contexts)), context]
    for number, (latent, text) in enumerate(zip((*ref_latents, x), captions, strict=True)):
        first_of_prompt = number == count  # whether it has the picture's time
        words.append(caption(text, first))
        first += (0 if text is None else text.shape[1]) if sees else words[-1][0].shape[1]
        if sees:
            tokens, ids = network.siglip_pad_token[None], torch.zeros(1, 3)
            if number < min(count, len(siglip_feats)):
                rows, columns = siglip_feats[number].shape[1:3]
                tokens = siglip_feats[number].permute(0, 3, 1, 2).reshape(-1, rows * columns, 12)  # as ComfyUI
                tokens = network.siglip_embedder(tokens)
                places = (torch.linspace(0, 8 * n - 1, n).floor() for n in (rows, columns))
                ids = torch.nn.functional.pad(torch.cartesian_prod(*places), (1, 0), value=first + 2)
            tokens, ids = filled(tokens, ids, network.siglip_pad_token)
            seen.append((tokens, ids, torch.full((len(ids),), False)))
        tokens, places, grid = cut(latent)
        ids = torch.nn.functional.pad(places, (1, 0), value=first + 1)
        kept = tokens  # of the picture, the last
        tokens, ids = filled(network.x_embedder(tokens), ids, network.x_pad_token if multiple > 1 else None)
        pictures.append((tokens, ids, torch.full((len(ids),), first_of_prompt)))
        first += 2
    for text in ref_contexts[count:]:
        words.append(caption(text, first))
        first += text.shape[1]

    def joined(parts):
        return (torch.cat(part, dim=1 if part[0].ndim == 3 else 0) for part in zip(*parts, strict=True))

    def qkv(layer, hidden, ids, scale):
        attention = layer.attention
        heads = attention.n_local_heads, attention.n_local_kv_heads, attention.n_local_kv_heads
        hidden = layer.attention_norm1(hidden) * (1 + scale)
        q, k, v = attention.qkv(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2).split(heads, dim=1)
        q, k = (rotated(part, ids, network.axes_dims, network.rope_embedder.theta)
                for part in (attention.q_norm(q), attention.k_norm(k)))  # fmt: skip
        return q, *(part.repeat_interleave(heads[0] // heads[1], dim=1) for part in (k, v))

    def left(layer, hidden, z, gate, scale, gate_mlp):
        hidden = hidden + gate * layer.attention_norm2(layer.attention.out(merged(z)))
        return hidden + gate_mlp * layer.ffn_norm2(layer.feed_forward(layer.ffn_norm1(hidden) * (1 + scale)))

    def mods(layer, has_time):
        """scale, gate, scale, gate of every token."""
        if not layer.modulation:
            return 0, 1, 0, 1
        mods = torch.where(has_time[:, None], *(layer.adaLN_modulation(vector)[:, None] for vector in (now, before)))
        return [part.tanh() if n % 2 else part for n, part in enumerate(mods.chunk(4, dim=-1))]

    def refined(layers, tokens, ids, has_time):
        for layer in layers:
            scale, *more = mods(layer, has_time)
            q, k, v = qkv(layer, tokens, ids, scale)
            tokens = left(layer, tokens, attend(q, (k, v, 0)), *more)
        return tokens, ids, has_time

    first_of_prompt = True
    texts = [tuple(joined(words)), *(caption(text, 0) for text in steer.contexts)]
    texts = [refined(network.context_refiner, *text) for text in texts]
    image = [refined(network.noise_refiner, *joined(pictures))]
    if sees:
        image.insert(0, refined(network.siglip_refiner, *joined(seen)))
    image, ids, has_time = joined(image)
    stop = image.shape[1] - (-kept.shape[1] % multiple)
    start = stop - kept.shape[1]
    for number, layer in enumerate(network.layers):
        scale, *more = mods(layer, has_time)
        qi, ki, vi = qkv(layer, image, ids, scale)
        pairs = [qkv(layer, text, places, mods(layer, flags)[0]) for text, places, flags in texts]
        z = steer.z(str(number), qi[:, :, start:stop], pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])
        whole = attend(qi, (*pairs[0][1:], 0), (ki, vi, 0))
        image = left(layer, image, torch.cat([whole[:, :, :start], z, whole[:, :, stop:]], dim=2), *more)
        own = [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        texts = [
            (left(layer, text, z, *mods(layer, flags)[1:]), places, flags)
            for (text, places, flags), z in zip(texts, own, strict=True)
        ]
    picture = image[:, start:stop]
    if hasattr(network, "dec_net"):  # pixels
        tokens = network.dec_net(kept.flatten(0, 1)[:, None], picture.flatten(0, 1)).view(kept.shape)
    else:
        tokens = network.final_layer(picture, now)
    result = unpatchified(tokens.unflatten(-1, (size * size, -1)).transpose(-1, -2).flatten(2), size, grid, x.shape)
    return (x + result) / timestep.view(-1, 1, 1, 1) if hasattr(network, "dec_net") else -result
