"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1."""

import torch

from .explicit import attend, merged
from .flux import flux_blocks, own_mods


def hunyuan_video(
    network, steer, x, timestep, context, y=None, txt_byt5=None, clip_fea=None, guidance=None, attention_mask=None,
    ref_latent=None, transformer_options=None, **_,
):  # fmt: skip
    from comfy.ldm.flux.layers import timestep_embedding

    size, params, time = network.patch_size, network.params, timestep_embedding(timestep, 256, time_factor=1.0)

    def cut(x):
        grid = [length // step for length, step in zip(x.shape[2:], size, strict=True)]
        return network.img_in(x), torch.cartesian_prod(*map(torch.arange, grid)).float(), grid

    image, ids, grid = cut(x)
    count = len(ids)
    if ref_latent is not None:
        tokens, places, _ = cut(ref_latent)
        places[:, 0], places[:, 2] = -1, places[:, 2] + grid[2]
        image, ids = torch.cat([tokens, image], dim=1), torch.cat([places, ids])
    vector = network.time_in(time)
    if params.meanflow:
        sigmas = transformer_options["sample_sigmas"]
        place = (sigmas == transformer_options["sigmas"][0]).nonzero()[0]
        until = network.time_r_in(timestep_embedding(sigmas[place + 1], 256))
        vector = vector + until if getattr(params, "meanflow_sum", False) else (vector + until) / 2
    if network.vector_in is not None:
        vector = vector + network.vector_in(y)
    if params.guidance_embed:
        vector = vector + network.guidance_in(timestep_embedding(guidance, 256))

    def refined(text, attention_mask=None, txt_byt5=None, clip_fea=None):
        """Without the tokens that the mask leaves out, which none of the others sees."""
        refiner, text = network.txt_in, text.expand(len(x), -1, -1)
        state = refiner.t_embedder(time) + refiner.c_embedder(text.mean(dim=1))
        text = refiner.input_embedder(text)
        if attention_mask is not None:
            text = text[:, attention_mask[0] > 0]
        for block in refiner.individual_token_refiner.blocks:
            gates = block.adaLN_modulation(state)[:, None].chunk(2, dim=-1)
            q, k, v = block.self_attn.qkv(block.norm1(text)).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
            text = text + block.self_attn.proj(merged(attend(q, (k, v, 0)))) * gates[0]
            text = text + block.mlp(block.norm2(text)) * gates[1]
        parts = [text]
        if txt_byt5 is not None:
            parts.append(network.byt5_in(txt_byt5).expand(len(x), -1, -1))
        if clip_fea is not None:
            parts.append(network.vision_in(clip_fea).expand(len(x), -1, -1))
        kinds = network.cond_type_embedding
        return torch.cat(parts if kinds is None else [part + kinds.weight[n] for n, part in enumerate(parts)], dim=1)

    texts = [refined(context, attention_mask, txt_byt5, clip_fea)]
    texts += [refined(text, **more) for text, more in zip(steer.contexts, steer.more, strict=True)]

    def text_ids(text):
        return torch.zeros(text.shape[1], len(size))

    def mods(place):
        return own_mods(network, place, vector)

    image = flux_blocks(network, steer, image, ids, slice(len(ids) - count, len(ids)), texts, text_ids, mods)
    tokens = network.final_layer(image, vector).unflatten(-1, (-1, *size)).unflatten(1, grid)
    tokens = tokens.movedim(len(size) + 1, 1)  # [batch, channels, *grid, *size]
    order = [axis + 2 for pair in zip(range(len(size)), range(len(size), 2 * len(size)), strict=True) for axis in pair]
    return tokens.permute(0, 1, *order).reshape(len(x), -1, *x.shape[2:])
