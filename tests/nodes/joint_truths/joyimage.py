"""JoyImage."""

import comfy.ldm.common_dit
import torch

from .explicit import rotated, split, unpatchified
from .two_streams import two_streams


def joyimage(network, steer, x, timestep, context, ref_latents=(), **_):
    pictures = [comfy.ldm.common_dit.pad_to_patch_size(latent, (1, 2, 2)) for latent in (x, *ref_latents)]
    image = torch.cat([network.img_in(part).flatten(2).transpose(1, 2).expand(len(x), -1, -1) for part in pictures], 1)
    frames, grids = (
        [part.shape[2] for part in pictures],
        [(part.shape[3] // 2, part.shape[4] // 2) for part in pictures],
    )
    count = frames[0] * grids[0][0] * grids[0][1]
    ids = [
        torch.cartesian_prod(torch.arange(sum(frames[:n]), sum(frames[: n + 1])), *map(torch.arange, grid))
        for n, grid in enumerate(grids)
    ]
    ids, embedder = torch.cat(ids), network.condition_embedder
    vector = embedder(timestep, context)[1].unflatten(1, (6, -1))
    texts = [embedder.text_embedder(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]

    def qkv(attention, x, text):
        name = "img" if text is None else "txt"
        q, k, v = getattr(attention, f"{name}_attn_qkv")(x).chunk(3, dim=-1)
        q, k, v = (split(part, attention.num_attention_heads) for part in (q, k, v))
        q, k = getattr(attention, f"{name}_attn_q_norm")(q), getattr(attention, f"{name}_attn_k_norm")(k)
        if text is None:
            q, k = (rotated(part, ids, network.rope_dim_list, network.theta) for part in (q, k))
        return q, k, v

    def mods(block):
        return [(mod.modulate_table + vector).unsqueeze(2).unbind(1) for mod in (block.img_mod, block.txt_mod)]

    image = two_streams(
        network.double_blocks, steer, image, texts, count, mods, qkv,
        lambda attention: (attention.img_attn_proj, attention.txt_attn_proj),
    )  # fmt: skip
    tokens = network.proj_out(network.norm_out(image[:, :count]))
    tokens = tokens.unflatten(-1, (4, -1)).transpose(-1, -2).flatten(2)
    return torch.stack([unpatchified(part, 2, grids[0], x.shape) for part in tokens.chunk(frames[0], dim=1)], dim=2)
