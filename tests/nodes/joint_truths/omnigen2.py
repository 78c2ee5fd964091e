"""OmniGen 2 and Boogu."""

import torch

from .explicit import attend, merged, patchified, rotated, unpatchified


def omnigen2(network, steer, x, timestep, context, ref_latents=(), **_):
    size, axes = network.patch_size, network.rope_embedder.axes_dim
    time = network.time_caption_embed(1 - timestep, context, x.dtype)[0]

    def cut(x):
        tokens, places, grid = patchified(x, size)
        return tokens.unflatten(-1, (-1, size * size)).transpose(-1, -2).flatten(2), places, grid

    def text_ids(text):
        return torch.arange(text.shape[1])[:, None].expand(-1, 3)

    def entered(layer, hidden):
        return layer.norm1(hidden, time) if layer.modulation else (layer.norm1(hidden), None, None, None)

    def qkv(attention, hidden, ids, to=None):
        to = to or (attention.to_q, attention.to_k, attention.to_v)
        q, k, v = (part(hidden).unflatten(-1, (-1, attention.dim_head)).transpose(1, 2) for part in to)
        q, k = rotated(attention.norm_q(q), ids, axes), rotated(attention.norm_k(k), ids, axes)
        return q, *(part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))

    def left(layer, hidden, z, gate, scale, gate_mlp):
        z = layer.norm2(layer.attn.to_out[0](merged(z)))
        if gate is None:
            hidden = hidden + z
            return hidden + layer.ffn_norm2(layer.feed_forward(layer.ffn_norm1(hidden)))
        hidden = hidden + gate[:, None].tanh() * z
        more = layer.feed_forward(layer.ffn_norm1(hidden) * (1 + scale[:, None]))
        return hidden + gate_mlp[:, None].tanh() * layer.ffn_norm2(more)

    def refined(layers, hidden, ids):
        for layer in layers:
            normed, *mods = entered(layer, hidden)
            q, k, v = qkv(layer.attn, normed, ids)
            hidden = left(layer, hidden, attend(q, (k, v, 0)), *mods)
        return hidden

    texts = [text.expand(len(x), -1, -1) for text in (context, *steer.contexts)]
    texts = [network.time_caption_embed.caption_embedder(text) for text in texts]
    texts = [refined(network.context_refiner, text, text_ids(text)) for text in texts]
    first, references, ids = context.shape[1], [], []
    for number, latent in enumerate(ref_latents):
        tokens, places, grid = cut(latent)
        index = network.image_index_embedding[number]
        references.append(network.ref_image_patch_embedder(tokens).expand(len(x), -1, -1) + index)
        ids.append(torch.nn.functional.pad(places, (1, 0), value=first))
        first += max(grid)
    tokens, places, grid = cut(x)
    count, places = tokens.shape[1], torch.nn.functional.pad(places, (1, 0), value=first)
    image = refined(network.noise_refiner, network.x_embedder(tokens), places)
    if references:
        references = refined(network.ref_image_refiner, torch.cat(references, dim=1), torch.cat(ids))
        image = torch.cat([references, image], dim=1)
    ids = torch.cat([*ids, places])

    def all_z(place, image, texts):
        (qi, ki, vi), (prompt, *negatives) = image, [text[1:] for text in texts]
        z = steer.z(place, qi[:, :, -count:], prompt, (ki, vi), negatives)
        references = attend(qi[:, :, :-count], (*prompt, 0), (ki, vi, 0))
        return torch.cat([references, z], dim=2), [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in texts]

    def into_double(block, stream, hidden, ids):
        norms = [getattr(block, f"{stream}_norm{n}")(hidden, time) for n in (1, 2)]
        joint = block.img_instruct_attn
        return qkv(joint, norms[0][0], ids, [getattr(joint.processor, f"{stream}_to_{n}") for n in "qkv"]), norms

    def out_of_double(block, stream, hidden, z, norms, more=0):
        (_, gate, scale, gate_mlp), (second, shift, *_) = norms
        attention_norm, norm1, norm2, feed_forward = (
            getattr(block, f"{stream}_{part}") for part in ("attn_norm", "ffn_norm1", "ffn_norm2", "feed_forward")
        )
        joint = block.img_instruct_attn
        z = joint.to_out[0](getattr(joint.processor, f"{stream}_out")(merged(z)))
        hidden = hidden + gate[:, None].tanh() * attention_norm(z) + more
        out = feed_forward(norm1((1 + scale[:, None]) * second + shift[:, None]))
        return hidden + gate_mlp[:, None].tanh() * norm2(out)

    for number, block in enumerate(getattr(network, "double_stream_layers", ())):  # Boogu
        alone, gate, *_ = block.img_norm3(image, time)
        q, k, v = qkv(block.img_self_attn, alone, ids)
        alone = block.img_self_attn_norm(block.img_self_attn.to_out[0](merged(attend(q, (k, v, 0)))))
        into, norms = into_double(block, "img", image, ids)
        pairs = [into_double(block, "instruct", text, text_ids(text)) for text in texts]
        z, own = all_z(f"double{number}", into, [pair for pair, _ in pairs])
        image = out_of_double(block, "img", image, z, norms, gate[:, None].tanh() * alone)
        texts = [
            out_of_double(block, "instruct", text, z, norms)
            for text, z, (_, norms) in zip(texts, own, pairs, strict=True)
        ]
    boogu = hasattr(network, "single_stream_layers")
    for number, layer in enumerate(network.single_stream_layers if boogu else network.layers):
        normed, *mods = entered(layer, image)
        pairs = [qkv(layer.attn, entered(layer, text)[0], text_ids(text)) for text in texts]
        z, own = all_z(f"single{number}" if boogu else str(number), qkv(layer.attn, normed, ids), pairs)
        image = left(layer, image, z, *mods)
        texts = [left(layer, text, z, *mods) for text, z in zip(texts, own, strict=True)]
    tokens = network.norm_out(image[:, -count:], time)
    tokens = tokens.unflatten(-1, (size * size, -1)).transpose(-1, -2).flatten(2)
    return -unpatchified(tokens, size, grid, x.shape)
