"""SD 3, SD 3.5 Large and Medium."""

from .explicit import attend, merged, unpatchified


def sd3(network, steer, x, timesteps, context, y=None, control=None, transformer_options=None, **_):
    size = network.patch_size
    hidden = network.x_embedder(x) + network.cropped_pos_embed(x.shape[-2:])
    vector = network.t_embedder(timesteps, dtype=x.dtype) + network.y_embedder(y)
    texts = [network.context_embedder(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]

    def qkv(attention, x):
        q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return attention.ln_q(q), attention.ln_k(k), v

    def modulated(norm, x, shift, scale):
        return norm(x) * (1 + scale[:, None]) + shift[:, None]

    for number, block in enumerate(network.joint_blocks):
        of_text, of_image = block.context_block, block.x_block
        mods = of_image.adaLN_modulation(vector).chunk(9 if of_image.x_block_self_attn else 6, dim=1)
        mods_text = of_text.adaLN_modulation(vector).chunk(2 if of_text.pre_only else 6, dim=1)
        qi, ki, vi = qkv(of_image.attn, modulated(of_image.norm1, hidden, *mods[:2]))
        texts_qkv = [qkv(of_text.attn, modulated(of_text.norm1, text, *mods_text[:2])) for text in texts]
        z = steer.z(str(number), qi, texts_qkv[0][1:], (ki, vi), [part[1:] for part in texts_qkv[1:]])
        if not of_text.pre_only:
            _, _, gate, shift, scale, gate_mlp = mods_text
            own = [merged(attend(q, (k, v, 0), (ki, vi, 0))) for q, k, v in texts_qkv]
            texts = [text + gate[:, None] * of_text.attn.proj(z) for text, z in zip(texts, own, strict=True)]
            texts = [
                text + gate_mlp[:, None] * of_text.mlp(modulated(of_text.norm2, text, shift, scale)) for text in texts
            ]
        more = 0
        if of_image.x_block_self_attn:
            q, k, v = qkv(of_image.attn2, modulated(of_image.norm1, hidden, *mods[6:8]))
            more = mods[8][:, None] * of_image.attn2.proj(merged(attend(q, (k, v, 0))))
        hidden = hidden + mods[2][:, None] * of_image.attn.proj(merged(z)) + more
        hidden = hidden + mods[5][:, None] * of_image.mlp(modulated(of_image.norm2, hidden, *mods[3:5]))
    tokens = network.final_layer(hidden, vector)
    grid = [-(-n // size) for n in x.shape[-2:]]
    picture = tokens.unflatten(-1, (size, size, -1)).permute(0, 1, 4, 2, 3).flatten(2)
    return unpatchified(picture, size, grid, x.shape)
