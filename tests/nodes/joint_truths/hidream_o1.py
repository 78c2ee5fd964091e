"""HiDream-O1."""

import torch

from .explicit import attend, merged, patchified, unpatchified


def hidream_o1(
    network, steer, x, timesteps, context, input_ids=None, position_ids=None, ref_pixel_values=None,
    ref_image_grid_thw=None, ref_patches=None, transformer_options=None, **_,
):  # fmt: skip
    """A language model: text is causal, in front of a token for the timestep and the picture, which see everything."""
    size, decoder, config = network.patch_size, network.language_model, network.text_config
    tokens, _, grid = patchified(x, size)
    count, length = tokens.shape[1], input_ids.shape[1] - 1
    tokens = tokens.unflatten(-1, (3, -1)).flatten(2)
    if ref_patches is not None:
        tokens = torch.cat([tokens, ref_patches.expand(len(x), -1, -1)], dim=1)
    sigma = timesteps / 1000
    time = network.t_embedder1((1 - sigma) * 1000, torch.float32)[:, None]
    image, places = torch.cat([time, network.x_embedder(tokens)], dim=1), position_ids[0, :, length:]
    words = decoder.embed_tokens(input_ids[:, :length])
    if ref_pixel_values is not None:
        seen = network.visual(ref_pixel_values[0], ref_image_grid_thw[0])
        words[:, input_ids[0, :length] == 151655] = seen
    texts, text_places = [words], [position_ids[0, :, :length]]
    for numbers in steer.contexts:
        texts.append(decoder.embed_tokens(numbers[..., :-1, 0].long()).expand(len(x), -1, -1))
        text_places.append(torch.arange(texts[-1].shape[1]).expand(3, -1))
    half = config.head_dim // 2
    axes = [(n % 3) if n < 3 * config.rope_dims[n % 3] and n % 3 else 0 for n in range(half)]

    def turned(x, ids):
        angles = ids[axes].T.double() / config.rope_theta ** (torch.arange(half).double() / half)
        first, second = x.double().chunk(2, dim=-1)
        turn = angles.cos(), angles.sin()
        return torch.cat([first * turn[0] - second * turn[1], second * turn[0] + first * turn[1]], dim=-1).float()

    def qkv(block, x, ids):
        attention, x = block.self_attn, block.input_layernorm(x)
        q, k, v = (to(x).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
                   for to in (attention.q_proj, attention.k_proj, attention.v_proj))  # fmt: skip
        q, k = turned(attention.q_norm(q), ids), turned(attention.k_norm(k), ids)
        return q, *(part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))

    def left(block, x, z):
        x = x + block.self_attn.o_proj(merged(z))
        into = block.post_attention_layernorm(x)
        return x + block.mlp.down_proj(torch.nn.functional.silu(block.mlp.gate_proj(into)) * block.mlp.up_proj(into))

    for number, block in enumerate(decoder.layers):
        qi, ki, vi = qkv(block, image, places)
        pairs = [qkv(block, text, ids) for text, ids in zip(texts, text_places, strict=True)]
        z = attend(qi, (*pairs[0][1:], 0), (ki, vi, 0))
        picture = slice(1, 1 + count)
        z[:, :, picture] = steer.z(str(number), qi[:, :, picture], pairs[0][1:], (ki, vi), [p[1:] for p in pairs[1:]])
        hidden = [torch.full((text.shape[1],) * 2, -torch.inf).triu(1) for text in texts]
        own = [attend(q, (k, v, mask)) for (q, k, v), mask in zip(pairs, hidden, strict=True)]
        image = left(block, image, z)
        texts = [left(block, text, z) for text, z in zip(texts, own, strict=True)]
    tokens = network.final_layer2(decoder.norm(image[:, 1 : 1 + count]))
    return (x - unpatchified(tokens, size, grid, x.shape)) / sigma.view(-1, 1, 1, 1)
