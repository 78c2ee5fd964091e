"""Flux 1, FLUX.2 and LongCat; Flux's blocks, for others too."""

import torch

from .explicit import attend, merged, normed, patchified, rotated, unpatchified, weight_of


def flux_blocks(network, steer, image, ids, picture, texts, text_ids, mods):
    """The picture's tokens after Flux's blocks.

    Args:
        image: [batch, tokens, width], with its ids [tokens, axes]; picture: the slice of it that is steered.
        texts: the prompt and the negatives, each [batch, tokens, width]; text_ids(text) are their ids.
        mods: (name of a block) -> its modulations: two of the image and two of the text, or one of the image and one
            of the text.
    """
    axes, theta = network.params.axes_dim, network.params.theta

    def qkv(linear, norm, x, ids):
        q, k, v = linear(x).unflatten(-1, (3, network.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight_of(weight)
                for part, weight in ((q, norm.query_norm), (k, norm.key_norm)))  # fmt: skip
        return *(rotated(part, ids, axes, theta) for part in (q, k)), v

    def z_of(place, image_qkv, texts_qkv):
        (qi, ki, vi), (prompt, *negatives) = image_qkv, texts_qkv
        own = [merged(attend(q, (k, v, 0), (ki, vi, 0))) for q, k, v in texts_qkv]
        z = attend(qi, (*prompt[1:], 0), (ki, vi, 0))
        z[:, :, picture] = steer.z(place, qi[:, :, picture], prompt[1:], (ki, vi), [part[1:] for part in negatives])
        return merged(z), own

    for number, block in enumerate(network.double_blocks):
        i1, i2, t1, t2 = mods(f"double{number}")
        into = normed(image) * (1 + i1.scale) + i1.shift
        image_qkv = qkv(block.img_attn.qkv, block.img_attn.norm, into, ids)
        texts_qkv = [
            qkv(block.txt_attn.qkv, block.txt_attn.norm, normed(text) * (1 + t1.scale) + t1.shift, text_ids(text))
            for text in texts
        ]
        z, own = z_of(f"double{number}", image_qkv, texts_qkv)
        image = image + i1.gate * block.img_attn.proj(z)
        image = image + i2.gate * block.img_mlp(normed(image) * (1 + i2.scale) + i2.shift)
        texts = [text + t1.gate * block.txt_attn.proj(z) for text, z in zip(texts, own, strict=True)]
        texts = [text + t2.gate * block.txt_mlp(normed(text) * (1 + t2.scale) + t2.shift) for text in texts]
    for number, block in enumerate(network.single_blocks):
        of_image, of_text = mods(f"single{number}")
        part_mods = [of_image] + [of_text] * len(texts)
        width = 3 * network.hidden_size
        into = [
            block.linear1(normed(part) * (1 + mod.scale) + mod.shift)
            for part, mod in zip((image, *texts), part_mods, strict=True)
        ]
        pairs = [qkv(lambda x: x, block.norm, part[..., :width], place) for part, place in
                 zip(into, [ids, *map(text_ids, texts)], strict=True)]  # fmt: skip
        z, own = z_of(f"single{number}", pairs[0], pairs[1:])
        out = [
            block.linear2(torch.cat([z, block.mlp_act(part[..., width:])], dim=-1))
            for z, part in zip((z, *own), into, strict=True)
        ]
        image, *texts = (
            part + mod.gate * more for part, mod, more in zip((image, *texts), part_mods, out, strict=True)
        )
    return image[:, picture]


def flux(
    network, steer, x, timestep, context, y=None, guidance=None, ref_latents=(), ref_latents_method=None,
    transformer_options=None, **_,
):  # fmt: skip
    from comfy.ldm.flux.layers import timestep_embedding

    params = network.params
    image, places, grid = patchified(x, network.patch_size)
    count = image.shape[1]
    text_axes = getattr(params, "txt_ids_dims", [3] if len(params.axes_dim) == 4 else [])
    shift = context.shape[1] if text_axes == [1, 2] else 0  # LongCat, whose picture begins where its text ends
    places = places + shift
    ids = torch.cat(
        [torch.full((count, 1), 1.0 if shift else 0.0), places, torch.zeros(count, len(params.axes_dim) - 3)], dim=1
    )
    for number, latent in enumerate(ref_latents):
        tokens, places, _ = patchified(latent, network.patch_size)
        first = torch.full((len(places), 1), params.ref_index_scale * (number + 1))
        image = torch.cat([image, tokens.expand(len(image), -1, -1)], dim=1)
        more = torch.cat([first, places, torch.zeros(len(places), len(params.axes_dim) - 3)], dim=1)
        ids = torch.cat([ids, more])
    image = network.img_in(image)

    def at(timestep):
        vector = network.time_in(timestep_embedding(timestep, 256))
        if params.guidance_embed:
            vector = vector + network.guidance_in(timestep_embedding(guidance, 256))
        return vector if network.vector_in is None else vector + network.vector_in(y)

    vector, references = at(timestep), image.shape[1] - count
    still = at(0 * timestep) if ref_latents_method == "index_timestep_zero" else vector
    negatives = steer.contexts
    if params.global_modulation:  # Flux 2, whose prompts ComfyUI fills up to 512 tokens on the left
        negatives = [torch.nn.functional.pad(text, (0, 0, max(512 - text.shape[1], 0), 0)) for text in negatives]
    texts = [network.txt_in(text.expand(len(x), -1, -1)) for text in (context, *negatives)]

    def text_ids(text):
        ids = torch.zeros(text.shape[1], len(params.axes_dim))
        for axis in text_axes:
            ids[:, axis] = torch.arange(text.shape[1])
        return ids

    def mods(place):
        if not params.global_modulation:
            return own_mods(network, place, vector)

        def of_image(modulation):
            """Those of every token: of the picture, then of reference pictures."""
            return [
                type(now)(*(torch.cat([getattr(now, part).expand(-1, count, -1),
                                       getattr(then, part).expand(-1, references, -1)], dim=1)
                            for part in ("shift", "scale", "gate")))
                for now, then in zip(modulation(vector), modulation(still), strict=True) if now is not None
            ]  # fmt: skip

        if place.startswith("double"):
            return *of_image(network.double_stream_modulation_img), *network.double_stream_modulation_txt(vector)
        return *of_image(network.single_stream_modulation), network.single_stream_modulation(vector)[0]

    image = flux_blocks(network, steer, image, ids, slice(0, count), texts, text_ids, mods)
    return unpatchified(network.final_layer(image, vector), network.patch_size, grid, x.shape)


def own_mods(network, place, vector):
    """Of a block that computes them."""
    part, number = place[:6], int(place[6:])
    block = getattr(network, f"{part}_blocks")[number]
    if part == "single":
        return [block.modulation(vector)[0]] * 2
    return *block.img_mod(vector), *block.txt_mod(vector)
