"""Qwen-Image and Mage-Flow."""

import torch

from .explicit import patchified, rotated, split, unpatchified
from .two_streams import two_streams


def qwen_image(network, steer, x, timestep, context, attention_mask=None, ref_latents=(), ref_latents_method=None, **_):
    """And Mage-Flow, whose text has no places, and the places of whose pictures count by other rules."""
    size, axes, mage = network.patch_size, network.pe_embedder.axes_dim, x.ndim == 4
    method = ref_latents_method or getattr(network, "default_ref_method", "index")

    def cut(x, first):
        parts = [patchified(frame, size) for frame in (x.unbind(2) if x.ndim == 5 else [x])]
        lengths = [-(-length // size) for length in x.shape[-2:]]
        places = parts[0][1] - torch.tensor([-(-length // 2) if mage else length // 2 for length in lengths])
        ids = [torch.nn.functional.pad(places, (1, 0), value=first + number) for number in range(len(parts))]
        return torch.cat([tokens for tokens, *_ in parts], dim=1), torch.cat(ids), parts[0][2]

    def text_ids(text):
        start = max(-(-length // size) // 2 for length in x.shape[-2:])
        return torch.arange(start, start + text.shape[1])[:, None].expand(-1, 3) * (not mage)

    tokens, ids, grid = cut(x, 0)
    count = tokens.shape[1]
    for number, latent in enumerate(ref_latents, start=1):
        more, places, _ = cut(latent, -number if method == "negative_index" else number)
        tokens, ids = torch.cat([tokens, more.expand(len(x), -1, -1)], dim=1), torch.cat([ids, places])
    image = network.img_in(tokens)
    time = network.time_text_embed(timestep, x)
    zero = network.time_text_embed(timestep * 0, x) if method == "index_timestep_zero" else time
    texts = [network.txt_in(network.txt_norm(text.expand(len(x), -1, -1))) for text in (context, *steer.contexts)]

    def mods(block):
        picture, others = block.img_mod(time)[:, None], block.img_mod(zero)[:, None]
        both = torch.cat([picture.expand(-1, count, -1), others.expand(-1, image.shape[1] - count, -1)], dim=1)
        return both.chunk(6, dim=-1), block.txt_mod(time)[:, None].chunk(6, dim=-1)

    def qkv(attention, x, text):
        names = ("to_q", "to_k", "to_v") if text is None else ("add_q_proj", "add_k_proj", "add_v_proj")
        q, k, v = (split(getattr(attention, to)(x), attention.heads) for to in names)
        norms = (
            (attention.norm_q, attention.norm_k) if text is None else (attention.norm_added_q, attention.norm_added_k)
        )
        places = ids if text is None else text_ids(text)
        return *(rotated(norm(part), places, axes) for norm, part in zip(norms, (q, k), strict=True)), v

    image = two_streams(
        network.transformer_blocks, steer, image, texts, count, mods, qkv, lambda at: (at.to_out[0], at.to_add_out)
    )
    tokens = network.proj_out(network.norm_out(image[:, :count], time))
    if mage:
        return unpatchified(tokens, size, grid, x.shape)
    return torch.stack([unpatchified(part, size, grid, x.shape) for part in tokens.chunk(x.shape[2], dim=1)], dim=2)
