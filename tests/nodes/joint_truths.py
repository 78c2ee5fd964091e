"""Whole networks of joint attention written out by hand, with a negative in them and every softmax as a matrix.

Their linear layers and norms are ComfyUI's modules; what flows between them is written here.
"""

from contextlib import contextmanager
from types import MethodType

import comfy.ldm.common_dit
import torch
from families import ALL


def attend(q, *parts):
    """softmax(q K^T / sqrt(d)) V over all parts (K, V, bias) together; [batch, heads, tokens, channels]."""
    scores = torch.cat([q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias for k, _, bias in parts], dim=-1)
    return scores.softmax(-1) @ torch.cat([v for _, v, _ in parts], dim=2)


def total(q, k):
    """Sum of exp(q k / sqrt(d)) over the keys, fp64."""
    return (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).exp().sum(-1, keepdim=True)


class Steer:
    """Z of the picture's queries.

    Args:
        contexts: the negatives' embeddings, each [1 or batch, tokens, width].
        alphas: of each, [batch, tokens of the picture or 1].
        rule, adaptive: as in rules.py.
        only: the names of the blocks that are steered; None for all.
        norm_limit: as in rules.py.
        more: what else is read of each negative, by the names of the network's arguments.
    """

    def __init__(self, contexts, alphas, rule, adaptive=False, only=None, norm_limit=0.0, more=None):
        self.contexts, self.alphas, self.rule, self.adaptive, self.only = contexts, alphas, rule, adaptive, only
        self.norm_limit, self.more = norm_limit, more or [{}] * len(contexts)

    def z(self, place, q, prompt, image, negatives):
        """prompt, image and each of negatives: (k, v)."""
        (kp, vp), (ki, vi) = prompt, image
        plain = z = attend(q, (kp, vp, 0), (ki, vi, 0))
        if self.only is not None and place not in self.only:
            return z
        subtracted, mass = 0, 1
        for (kn, vn), alpha in zip(negatives, self.alphas, strict=True):
            alpha = alpha[:, None, :, None]
            if self.adaptive:
                share = total(q, kp) / (total(q, kp) + total(q, kn))
                alpha = alpha * (2 * (1 - share)).clamp(max=1).float()
            if self.rule == "nasa":
                z = z - alpha * attend(q, (kn, vn, 0))
            elif self.rule == "difference":
                z = z + alpha * (plain - attend(q, (kn, vn, 0), (ki, vi, 0)))
            else:
                m = (total(q, kn) / (total(q, ki) + total(q, kp))).float()
                subtracted = subtracted + alpha * m * attend(q, (kn, vn, 0))
                mass = mass + alpha.clamp(max=1) * m
        z = z if self.rule != "vsf" else (z - subtracted) / mass
        if self.norm_limit and self.alphas:
            ratio = z.abs().sum((1, 3), keepdim=True) / plain.abs().sum((1, 3), keepdim=True)
            z = torch.where(ratio > self.norm_limit, z * self.norm_limit / ratio, z)
        return z


def rotated(x, ids, axes, theta=10000):
    """Rope by complex numbers, pairs of neighbours: x [batch, heads, tokens, channels], ids [tokens, axes]."""
    angles = [ids[:, n : n + 1].double() / theta ** (torch.arange(0, d, 2).double() / d) for n, d in enumerate(axes)]
    turn = torch.polar(torch.ones(()).double(), torch.cat(angles, dim=-1))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def patchified(x, size):
    """[batch, tokens, channels * size * size], and the ids (row, column) of its tokens."""
    pad = [-n % size for n in x.shape[-2:]]
    x = torch.nn.functional.pad(x, (0, pad[1], 0, pad[0]), mode="circular")
    rows, columns = x.shape[-2] // size, x.shape[-1] // size
    tokens = x.unflatten(-1, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 1, 3, 5)
    return (
        tokens.flatten(3).flatten(1, 2),
        torch.cartesian_prod(torch.arange(rows), torch.arange(columns)),
        (rows, columns),
    )


def unpatchified(tokens, size, grid, shape):
    """The reverse of `patchified`, cut to shape."""
    x = tokens.unflatten(-1, (-1, size, size)).unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4).flatten(2, 3)[..., : shape[-2], : shape[-1]]


def merged(z):
    return z.transpose(1, 2).flatten(2)


def normed(x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


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


def flux(network, steer, x, timestep, context, y=None, guidance=None, ref_latents=(), transformer_options=None, **_):
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
    vector = network.time_in(timestep_embedding(timestep, 256))
    if params.guidance_embed:
        vector = vector + network.guidance_in(timestep_embedding(guidance, 256))
    if network.vector_in is not None:
        vector = vector + network.vector_in(y)
    negatives = steer.contexts
    if params.global_modulation:  # Flux 2, whose prompts ComfyUI fills up to 512 tokens on the left
        negatives = [torch.nn.functional.pad(text, (0, 0, 512 - text.shape[1], 0)) for text in negatives]
    texts = [network.txt_in(text.expand(len(x), -1, -1)) for text in (context, *negatives)]

    def text_ids(text):
        ids = torch.zeros(text.shape[1], len(params.axes_dim))
        for axis in text_axes:
            ids[:, axis] = torch.arange(text.shape[1])
        return ids

    def mods(place):
        if not params.global_modulation:
            return own_mods(network, place, vector)
        if place.startswith("double"):
            return *network.double_stream_modulation_img(vector), *network.double_stream_modulation_txt(vector)
        return [network.single_stream_modulation(vector)[0]] * 2

    image = flux_blocks(network, steer, image, ids, slice(0, count), texts, text_ids, mods)
    return unpatchified(network.final_layer(image, vector), network.patch_size, grid, x.shape)


def own_mods(network, place, vector):
    """Of a block that computes them."""
    part, number = place[:6], int(place[6:])
    block = getattr(network, f"{part}_blocks")[number]
    if part == "single":
        return [block.modulation(vector)[0]] * 2
    return *block.img_mod(vector), *block.txt_mod(vector)


def chroma(network, steer, x, timestep, context, guidance=None, attention_mask=None, transformer_options=None, **_):
    from comfy.ldm.flux.layers import ModulationOut, timestep_embedding

    params = network.params
    image, places, grid = patchified(x, network.patch_size)
    count = image.shape[1]
    asked = torch.cat([timestep_embedding(timestep, 16), timestep_embedding(guidance, 16).expand(len(x), -1)], dim=1)
    rows = timestep_embedding(torch.arange(344), 32).expand(len(x), -1, -1)
    table = network.distilled_guidance_layer(torch.cat([asked[:, None].expand(-1, 344, -1), rows], dim=2))

    def mods(place):
        """Three rows of the table each: all single blocks, then the image's of all double ones, then the text's."""
        part, number = place[:6], int(place[6:])
        if part == "single":
            first = [3 * number] * 2
        else:
            image, text = (3 * params.depth_single_blocks + 6 * (part * params.depth + number) for part in (0, 1))
            first = [image, image + 3, text, text + 3]
        return [ModulationOut(*(table[:, row + n, None] for n in range(3))) for row in first]

    def text_ids(text):
        ids = torch.zeros(text.shape[1], 3)
        if getattr(params, "use_sequential_txt_ids", False):
            ids[:, 0] = torch.arange(text.shape[1])
        return ids

    if hasattr(network, "img_in_patch"):  # Radiance, which hands a picture of whole patches on to its last layers
        pixels = unpatchified(
            image, network.patch_size, grid, [grid[0] * network.patch_size, grid[1] * network.patch_size]
        )
        image = network.img_in(pixels)
    else:
        image = network.img_in(image)
    texts = [network.txt_in(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]
    ids = torch.nn.functional.pad(places, (1, 0)).float()
    image = flux_blocks(network, steer, image, ids, slice(0, count), texts, text_ids, mods)
    if hasattr(network, "img_in_patch"):
        return network.forward_nerf(pixels, image, params)[..., : x.shape[-2], : x.shape[-1]]
    shift, scale = table[:, -2, None], table[:, -1, None]
    image = network.final_layer.linear(normed(image) * (1 + scale) + shift)
    return unpatchified(image, network.patch_size, grid, x.shape)


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


def weight_of(norm):
    return norm.scale if hasattr(norm, "scale") else norm.weight


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


def auraflow(network, steer, x, timestep, context, transformer_options=None, **_):
    tokens, _, grid = patchified(x, network.patch_size)
    image = network.apply_pos_embeds(network.init_x_linear(tokens), *x.shape[-2:])
    state = network.t_embedder(timestep, x.dtype)
    texts = [network.cond_seq_linear(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]
    texts = [torch.cat([network.register_tokens.expand(len(x), -1, -1), text], dim=1) for text in texts]

    def normed(x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    def qkv(attention, stream, x):
        q, k, v = (
            getattr(attention, f"w{stream}{part}")(x).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        return normed(q), normed(k), v

    def left(x, z, mlp, mods):
        _, _, gate, shift, scale, gate_mlp = mods
        return x + gate_mlp * mlp(normed(x + gate * z) * (1 + scale) + shift)

    def passed(place, attention, streams, mods, mlps):
        """The picture and the texts after a block, whose parts for each are given in this order."""
        hidden = [image, *texts]
        into = [normed(x) * (1 + mod[1]) + mod[0] for x, mod in zip(hidden, mods, strict=True)]
        (qi, ki, vi), *pairs = (qkv(attention, n, x) for n, x in zip(streams, into, strict=True))
        z = [steer.z(place, qi, pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])]
        z += [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        z = [getattr(attention, f"w{n}o")(merged(part)) for n, part in zip(streams, z, strict=True)]
        return [left(*parts) for parts in zip(hidden, z, mlps, mods, strict=True)]

    count, state = len(texts), state[:, None]
    for number, block in enumerate(network.double_layers):
        mods = [block.modX(state).chunk(6, dim=-1)] + [block.modC(state).chunk(6, dim=-1)] * count
        mlps = [block.mlpX] + [block.mlpC] * count
        image, *texts = passed(f"double{number}", block.attn, [2] + [1] * count, mods, mlps)
    for number, block in enumerate(network.single_layers):
        mods = [block.modCX(state).chunk(6, dim=-1)] * (count + 1)
        image, *texts = passed(f"single{number}", block.attn, [1] * (count + 1), mods, [block.mlp] * (count + 1))
    shift, scale = network.modF(state).chunk(2, dim=-1)
    tokens = network.final_linear(image * (1 + scale) + shift)
    picture = tokens.unflatten(-1, (network.patch_size, network.patch_size, -1)).permute(0, 1, 4, 2, 3).flatten(2)
    return unpatchified(picture, network.patch_size, grid, x.shape)


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


def two_streams(blocks, steer, image, texts, count, mods, qkv, projections):
    """The image after these blocks, of which the first `count` tokens are the picture's.

    Args:
        mods: block -> shift, scale, gate and the MLP's of the image, and the six of the text.
        qkv: (attention, x, text) -> q, k and v of the image, or of a text, which x is made of.
        projections: attention -> of the image, of the text.
    """
    for number, block in enumerate(blocks):
        (shift, scale, gate, shift2, scale2, gate2), mods_text = mods(block)
        of_image, of_text = projections(block.attn)
        qi, ki, vi = qkv(block.attn, block.img_norm1(image) * (1 + scale) + shift, None)
        pairs = [qkv(block.attn, block.txt_norm1(text) * (1 + mods_text[1]) + mods_text[0], text) for text in texts]
        z = steer.z(str(number), qi[:, :, :count], pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])
        references = attend(qi[:, :, count:], (*pairs[0][1:], 0), (ki, vi, 0))
        own = [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        image = image + gate * of_image(merged(torch.cat([z, references], dim=2)))
        image = image + gate2 * block.img_mlp(block.img_norm2(image) * (1 + scale2) + shift2)
        texts = [text + mods_text[2] * of_text(merged(z)) for text, z in zip(texts, own, strict=True)]
        shift, scale, gate = mods_text[3:]
        texts = [text + gate * block.txt_mlp(block.txt_norm2(text) * (1 + scale) + shift) for text in texts]
    return image


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


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


def lens(network, steer, x, timestep, context, attention_mask=None, **_):
    axes, (height, width) = network.pos_embed.axes_dim, x.shape[-2:]
    start = torch.tensor([height - height // 2, width - width // 2])
    ids = torch.nn.functional.pad(patchified(x, 1)[1] - start, (1, 0))
    time = network.time_text_embed(timestep, x)
    several = network.multi_layer_encoder_feature
    norms = network.txt_norm if several else [network.txt_norm]

    def embedded(text):
        parts = text.expand(len(x), -1, -1).chunk(len(norms), dim=-1)
        return network.txt_in(torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], dim=-1))

    def qkv(attention, x, text):
        of_text = text is not None
        q, k, v = (attention.txt_qkv if of_text else attention.img_qkv)(x).chunk(3, dim=-1)
        q, k, v = (split(part, attention.heads) for part in (q, k, v))
        norms = (attention.norm_added_q, attention.norm_added_k) if of_text else (attention.norm_q, attention.norm_k)
        first = max(height // 2, width // 2)
        places = torch.arange(first, first + x.shape[1])[:, None].expand(-1, 3) if of_text else ids
        return *(rotated(norm(part), places, axes) for norm, part in zip(norms, (q, k), strict=True)), v

    def mods(block):
        return [mod(time)[:, None].chunk(6, dim=-1) for mod in (block.img_mod, block.txt_mod)]

    tokens, _, grid = patchified(x, 1)
    texts = [embedded(text) for text in (context, *steer.contexts)]
    image = two_streams(
        network.transformer_blocks, steer, network.img_in(tokens), texts, height * width, mods, qkv,
        lambda attention: (attention.to_out[0], attention.to_add_out),
    )  # fmt: skip
    return unpatchified(network.proj_out(network.norm_out(image, time)), 1, grid, x.shape)


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


def ernie(network, steer, x, timestep, context, **_):
    height, width = x.shape[-2:]
    texts = [network.text_proj(text.expand(len(x), -1, -1)) for text in (context, *steer.contexts)]
    image = network.x_embedder(x)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    ids = torch.nn.functional.pad(places, (1, 0), value=context.shape[1])
    time = network.time_embedding(network.time_proj(timestep))
    shift, scale, gate, shift2, scale2, gate2 = network.adaLN_modulation(time)[:, None].chunk(6, dim=-1)

    def turned(x, ids):
        """Rope of the pairs (n, n + half), each angle for two pairs in a row."""
        angles = [
            ids[:, n : n + 1].double() / network.pos_embed.theta ** (torch.arange(0, d, 2).double() / d)
            for n, d in enumerate(network.pos_embed.axes_dim)
        ]
        angles, (first, second) = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1), x.double().chunk(2, dim=-1)
        return (x.double() * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()).float()

    def qkv(attention, x, ids):
        q, k, v = (split(to(x), attention.heads) for to in (attention.to_q, attention.to_k, attention.to_v))
        return turned(attention.norm_q(q), ids), turned(attention.norm_k(k), ids), v

    def left(layer, hidden, z):
        hidden = hidden + gate * layer.self_attention.to_out[0](merged(z))
        return hidden + gate2 * layer.mlp(layer.adaLN_mlp_ln(hidden) * (1 + scale2) + shift2)

    for number, layer in enumerate(network.layers):
        qi, ki, vi = qkv(layer.self_attention, layer.adaLN_sa_ln(image) * (1 + scale) + shift, ids)
        pairs = [
            qkv(
                layer.self_attention,
                layer.adaLN_sa_ln(text) * (1 + scale) + shift,
                torch.nn.functional.pad(torch.arange(text.shape[1])[:, None], (0, 2)),
            )
            for text in texts
        ]
        z = steer.z(str(number), qi, pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])
        own = [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        image = left(layer, image, z)
        texts = [left(layer, text, z) for text, z in zip(texts, own, strict=True)]
    return unpatchified(network.final_linear(network.final_norm(image, time)), 1, (height, width), x.shape)


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


def ideogram4(network, steer, x, timestep, context=None, attention_mask=None, **_):
    from comfy.text_encoders.llama import precompute_freqs_cis  # fp32, in which 65536 turns are rounded

    time = network.t_embedding(1 - timestep, dtype=x.dtype)[:, None]
    vector = torch.nn.functional.silu(network.adaln_proj(time))

    def turns(ids):
        options = {"rope_dims": network.mrope_section, "interleaved_mrope": True}
        cos, sin, _ = precompute_freqs_cis(network.head_dim, ids.T, network.rope_theta, **options)
        return cos[0, :, : network.head_dim // 2], sin[0]

    def turned(x, ids):
        (cos, sin), (one, other) = turns(ids), x.chunk(2, dim=-1)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)

    def qkv(layer, hidden, ids, scale):
        attention = layer.attention
        hidden = attention.qkv(layer.attention_norm1(hidden) * (1 + scale))
        q, k, v = hidden.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return turned(attention.norm_q(q), ids), turned(attention.norm_k(k), ids), v

    def left(layer, hidden, z, gate, scale, gate_mlp):
        hidden = hidden + gate.tanh() * layer.attention_norm2(layer.attention.o(merged(z)))
        out = layer.feed_forward(layer.ffn_norm1(hidden) * (1 + scale))
        return hidden + gate_mlp.tanh() * layer.ffn_norm2(out)

    def read(text, mask=None):
        """Padding, at the end, is seen by none but itself."""
        text = text.expand(len(x), -1, -1) if mask is None else text[:, : int(mask[0].sum())]
        text = network.llm_cond_proj(network.llm_cond_norm(text)) + network.embed_image_indicator.weight[0]
        return text, torch.arange(text.shape[1])[:, None].expand(-1, 3)

    rows, columns = x.shape[-2:]
    tokens = x.unflatten(1, (-1, 2, 2)).permute(0, 4, 5, 2, 3, 1).flatten(3).flatten(1, 2)
    image = network.input_proj(tokens) + network.embed_image_indicator.weight[1]
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)) + 65536
    texts = [read(context, attention_mask), *map(read, steer.contexts)]
    for number, layer in enumerate(network.layers):
        scale, *more = layer.adaln_modulation(vector).chunk(4, dim=-1)
        qi, ki, vi = qkv(layer, image, ids, scale)
        pairs = [qkv(layer, *text, scale) for text in texts]
        z = steer.z(str(number), qi, pairs[0][1:], (ki, vi), [pair[1:] for pair in pairs[1:]])
        image = left(layer, image, z, *more)
        own = [attend(q, (k, v, 0), (ki, vi, 0)) for q, k, v in pairs]
        texts = [(left(layer, text, z, *more), places) for (text, places), z in zip(texts, own, strict=True)]
    tokens = network.final_layer(image, vector).unflatten(1, (rows, columns)).unflatten(-1, (2, 2, -1))
    return -tokens.permute(0, 5, 3, 4, 1, 2).flatten(1, 3)


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


NETWORKS = {
    "flux": flux, "sd3": sd3, "omnigen2": omnigen2, "qwen_image": qwen_image, "lumina": lumina, "lens": lens,
    "joyimage": joyimage, "ernie": ernie, "mochi": mochi, "krea2": krea2, "chroma": chroma,
    "hunyuan_video": hunyuan_video, "auraflow": auraflow, "ideogram4": ideogram4,
    "hidream_o1": hidream_o1,
}  # fmt: skip


@contextmanager
def by_hand(name, model, steer):
    """The model's network replaced by the one written out here; every row of every call is steered."""
    network, written = model.model.diffusion_model, NETWORKS[ALL[name].layout]

    def forward(network, x, timestep, context, **kwargs):
        return written(network, steer, x, timestep, context, **kwargs)

    network.forward = MethodType(forward, network)
    try:
        yield
    finally:
        del network.forward
