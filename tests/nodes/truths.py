"""The formula by hand for every family: forward hooks on the raw layers, and plain softmax attention written out."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from families import FAMILIES

try:
    from comfy.ldm.ace.ace_step15 import get_silence_latent
except ImportError:  # an older ComfyUI has no ACE-Step 1.5
    get_silence_latent = None

ALPHA = 0.4


@dataclass(frozen=True)
class Truth:
    """How one layout attends to text, read from ComfyUI's own modules.

    Attributes:
        attention: the class of its cross-attentions, and how their names end.
        q, out: the modules in it that give the queries (normalised, before rope) and take Z.
        heads: the attribute that counts its heads.
        keys, values: (attention, text) -> [rows, tokens, channels].
        text: (network, attention's name, embedding, options, seen) -> the tokens that keys and values read.
        rotated: (q [rows, image tokens, heads, channels], arguments of the attention) -> q after rope.
        placed: (Z [rows, image tokens, channels]) -> as `out` takes it.
        gates: (attention, its arguments) -> what multiplies Z [rows, image tokens, heads, channels].
        attend: (attention, q, k, v), each [rows, tokens, channels] -> Z and the sum of exp(q k / sqrt(d)), each [rows,
            tokens, heads, channels or 1], where a layer is not one plain attention; rotated, heads and gates do not
            count then.
    """

    attention: tuple[str, str]
    q: str
    out: str
    heads: str
    keys: Callable
    values: Callable
    text: Callable
    rotated: Callable = lambda q, arguments: q
    placed: Callable = lambda z: z
    gates: Callable = lambda layer, arguments: 1.0
    attend: Callable | None = None


def normed(norm, projected, heads):
    """K with a norm for every head."""
    return norm(projected.unflatten(-1, (heads, -1))).flatten(2)


def hunyuan_text(network, key, embedding, options, seen):
    """CLIP then T5 tokens; a learned embedding in place of the padding among the last tokens of either."""
    clip, t5 = embedding.clone(), network.mlp_t5(options["conditioning_mt5xl"])
    learned = network.text_embedding_padding.split([network.text_len, network.text_len_t5])
    for tokens, mask, padding in (
        (clip, options["attention_mask"], learned[0]),
        (t5, options["attention_mask_mt5xl"], learned[1]),
    ):
        first = tokens.shape[1] - len(padding)
        for n in range(len(padding)):
            if not mask[0, first + n]:
                tokens[0, first + n] = padding[n]
    return torch.cat([clip, t5], dim=1)


def hunyuan_rope(q, arguments):
    cos, sin = (part[None, :, None] for part in arguments[2])
    even, odd = q[..., 0::2], q[..., 1::2]
    return q * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin


def unmasked_text(network, key, embedding, options, seen):
    mask = options.get("attention_mask")
    return network.caption_projection(embedding if mask is None else embedding[:, mask[0].bool()])


def attention_gates(layer, arguments):
    """LTX 2.3: a number for every head of every token, [rows, tokens, heads, 1]."""
    gate = getattr(layer, "to_gate_logits", None)
    return 1.0 if gate is None else 2 * gate(arguments[0]).sigmoid().unsqueeze(-1)


def modulated_text(network, key, tokens, seen):
    """Shifted and scaled by the block's table and the timestep, for the rows of the call."""
    adaln = "audio_prompt_adaln_single" if ".audio_" in key else "prompt_adaln_single"
    if getattr(network, adaln, None) is None:
        return tokens
    block = network.get_submodule(key.rpartition(".")[0])
    table = getattr(block, "audio_prompt_scale_shift_table" if ".audio_" in key else "prompt_scale_shift_table")
    shift, scale = (table + seen[adaln][0].unflatten(-1, (2, -1))).unsqueeze(1).unbind(dim=2)
    return tokens * (1 + scale) + shift


def ltx_text(network, key, embedding, options, seen):
    return modulated_text(network, key, unmasked_text(network, key, embedding, options, seen), seen)


def ltx_2_text(network, key, embedding, options, seen):
    """Through the connector of video or of sound, before or after a projection."""
    sound = ".audio_" in key
    connector = network.audio_embeddings_connector if sound else network.video_embeddings_connector
    project = network.audio_caption_projection if sound else network.caption_projection
    if network.caption_proj_before_connector:
        widths = [network.cross_attention_dim, network.audio_cross_attention_dim]
        return modulated_text(network, key, connector(embedding.split(widths, dim=-1)[sound])[0], seen)
    return project(connector(embedding)[0])


def anima_text(network, key, embedding, options, seen):
    tokens = network.llm_adapter(embedding, options["t5xxl_ids"][None]) * options["t5xxl_weights"][None, :, None]
    return torch.cat([tokens, torch.zeros(1, 512 - tokens.shape[1], tokens.shape[2])], dim=1)


def kandinsky_text(network, key, embedding, options, seen):
    """The text blocks know the timestep of the call and the pooled embedding of the prompt they read."""
    time = seen["time"] + network.pooled_text_embeddings(options["pooled_output"])
    tokens = network.text_embeddings(embedding).expand(len(time), -1, -1)
    positions = network.rope_encode_1d(tokens.shape[1])
    for block in network.text_transformer_blocks:
        tokens = block(tokens, time, positions)
    return tokens


def ace_text(network, key, embedding, options, seen):
    """The speaker (none), the tags and the lyrics."""
    speaker = network.speaker_embedder(torch.zeros(1, 1, network.speaker_embedder.in_features))
    lyrics = network.lyric_encoder(network.lyric_embs(options["conditioning_lyrics"]), None, 1, -1)[0]
    lyrics = network.lyric_proj(lyrics) * options["lyrics_strength"]
    return torch.cat([speaker, network.genre_embedder(embedding), lyrics], dim=1)


def ace_rope(x):
    """Pairs of neighbours x [rows, tokens, heads, channels], each channel by an angle of its own, not each pair."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] / 1000000 ** (torch.arange(half) / half)
    angles = torch.cat([angles, angles], dim=-1)[None, :, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * angles.cos() + torch.stack([-odd, even], dim=-1).flatten(-2) * angles.sin()


def ace_15_text(network, key, embedding, options, seen):
    """The lyrics, a token of the timbre of silence, and the tags."""
    encoder, silence = network.encoder, get_silence_latent(FAMILIES["ACE-Step 1.5"].latent[1], "cpu").transpose(1, 2)
    timbre = encoder.timbre_encoder(silence, torch.zeros(1, dtype=torch.long))[0]
    lyrics = encoder.lyric_encoder(options["conditioning_lyrics"])
    text = torch.cat([lyrics, timbre, encoder.text_projector(embedding)], dim=1)
    return network.decoder.condition_embedder(text)


def repeated(x, layer, heads):
    """x [rows, tokens, channels] of fewer heads than the queries have."""
    return x.unflatten(-1, (heads, -1)).repeat_interleave(layer.num_heads // heads, dim=2).flatten(2)


def audio_text(network, key, embedding, options, seen):
    """The text, and a token for each number of seconds that the model has an embedder for."""
    names = [name for name in ("seconds_start", "seconds_total") if hasattr(seen["model"], f"{name}_embedder")]
    seconds = [getattr(seen["model"], f"{name}_embedder")([options[name]])[0] for name in names]
    return network.to_cond_embed(torch.cat([embedding, *seconds], dim=1))


def audio_attention(layer, q, k, v):
    """In Stable Audio 3 less a second attention with the same values: q and k are of both, side by side; the first
    weighs the texts."""
    width, z, masses = layer.dim_heads * layer.num_heads, 0, []
    for n in range(q.shape[-1] // width):
        keys = k.chunk(q.shape[-1] // width, dim=-1)[n]
        keys, values = (repeated(x, layer, layer.kv_heads) for x in (keys, v))
        parts = q[..., n * width : (n + 1) * width], keys, values
        heads = [part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in parts]
        if hasattr(layer, "q_norm"):
            heads[:2] = (x / (x.square().mean(-1, keepdim=True) + 1.2e-7).sqrt() * norm.gamma
                         for x, norm in zip(heads, (layer.q_norm, layer.k_norm), strict=False))  # fmt: skip
        scores = heads[0] @ heads[1].transpose(-1, -2) / layer.dim_heads**0.5
        masses.append(scores.double().exp().sum(-1, keepdim=True).transpose(1, 2))
        z = z + (-1) ** n * (scores.softmax(-1) @ heads[2]).transpose(1, 2)
    return z, masses[0]


def plain_text(network, key, embedding, options, seen):
    return embedding


COSMOS = {
    "attention": ("comfy.ldm.cosmos.predict2.Attention", ".cross_attn"),
    "q": "q_norm", "out": "output_proj", "heads": "n_heads",
    "keys": lambda layer, text: normed(layer.k_norm, layer.k_proj(text), layer.n_heads),
    "values": lambda layer, text: layer.v_proj(text),
}  # fmt: skip
WAN = {
    "q": "norm_q", "out": "o", "heads": "num_heads",
    "keys": lambda layer, text: layer.norm_k(layer.k(text)),
    "values": lambda layer, text: layer.v(text),
    "text": lambda network, key, embedding, options, seen: network.text_embedding(embedding),
}  # fmt: skip
TRUTHS = {
    "unet": Truth(
        ("comfy.ldm.modules.attention.CrossAttention", ".attn2"), "to_q", "to_out", "heads",
        keys=lambda layer, text: layer.to_k(text),
        values=lambda layer, text: layer.to_v(text),
        text=plain_text,
    ),
    "pixart": Truth(
        ("comfy.ldm.pixart.blocks.MultiHeadCrossAttention", ".cross_attn"), "q_linear", "proj", "num_heads",
        keys=lambda layer, text: layer.kv_linear(text).chunk(2, dim=-1)[0],
        values=lambda layer, text: layer.kv_linear(text).chunk(2, dim=-1)[1],
        text=lambda network, key, embedding, options, seen: network.y_embedder(embedding, False),
    ),
    "hunyuan_dit": Truth(
        ("comfy.ldm.hydit.attn_layers.CrossAttention", ".attn2"), "q_norm", "out_proj", "num_heads",
        keys=lambda layer, text: normed(layer.k_norm, layer.kv_proj(text).chunk(2, dim=-1)[0], layer.num_heads),
        values=lambda layer, text: layer.kv_proj(text).chunk(2, dim=-1)[1],
        text=hunyuan_text,
        rotated=hunyuan_rope,
    ),
    "ltx_video": Truth(
        ("comfy.ldm.lightricks.model.CrossAttention", ".attn2"), "q_norm", "to_out", "heads",
        keys=lambda layer, text: layer.k_norm(layer.to_k(text)),
        values=lambda layer, text: layer.to_v(text),
        text=ltx_text,
    ),
    "ltx_video_2": Truth(
        ("comfy.ldm.lightricks.model.CrossAttention", "attn2"), "q_norm", "to_out", "heads",
        keys=lambda layer, text: layer.k_norm(layer.to_k(text)),
        values=lambda layer, text: layer.to_v(text),
        text=ltx_2_text,
        gates=attention_gates,
    ),
    "wan": Truth(("comfy.ldm.wan.model.Wan", ".cross_attn"), **WAN),  # WanT2VCrossAttention, WanI2VCrossAttention
    "cosmos": Truth(**COSMOS, text=plain_text),
    "cosmos_1": Truth(
        ("comfy.ldm.cosmos.blocks.Attention", ".blocks.1.block.attn"), "to_q.1", "to_out", "heads",
        keys=lambda layer, text: normed(layer.to_k[1], layer.to_k[0](text), layer.heads),
        values=lambda layer, text: layer.to_v[0](text),
        text=plain_text,
        rotated=lambda q, arguments: q.transpose(1, 2),  # heads come first
        placed=lambda z: z.transpose(0, 1),
    ),
    "anima": Truth(**COSMOS, text=anima_text),
    "kandinsky": Truth(
        ("comfy.ldm.kandinsky5.model.CrossAttention", ".cross_attention"), "query_norm", "out_layer", "num_heads",
        keys=lambda layer, text: normed(layer.key_norm, layer.to_key(text), layer.num_heads),
        values=lambda layer, text: layer.to_value(text),
        text=kandinsky_text,
    ),
    "ace_step": Truth(
        ("comfy.ldm.ace.attention.Attention", ".cross_attn"), "to_q", "to_out.0", "heads",
        keys=lambda layer, text: ace_rope(layer.to_k(text).unflatten(-1, (layer.heads, -1))).flatten(2),
        values=lambda layer, text: layer.to_v(text),
        text=ace_text,
        rotated=lambda q, arguments: ace_rope(q),
    ),
    "ace_step_15": Truth(
        ("comfy.ldm.ace.ace_step15.AceStepAttention", ".cross_attn"), "q_norm", "o_proj", "num_heads",
        keys=lambda layer, text: repeated(normed(layer.k_norm, layer.k_proj(text), layer.num_kv_heads), layer,
                                          layer.num_kv_heads),
        values=lambda layer, text: repeated(layer.v_proj(text), layer, layer.num_kv_heads),
        text=ace_15_text,
    ),
    "stable_audio": Truth(
        ("comfy.ldm.audio.dit.Attention", ".cross_attn"), "to_q", "to_out", "num_heads",
        keys=lambda layer, text: layer.to_kv(text)[..., : -layer.dim_heads * layer.kv_heads],
        values=lambda layer, text: layer.to_kv(text)[..., -layer.dim_heads * layer.kv_heads :],
        text=audio_text,
        attend=audio_attention,
    ),
}  # fmt: skip


def attentions(name, model):
    """Every cross-attention that reads the text, by its name; as many as the family has."""
    kind, ending = TRUTHS[FAMILIES[name].layout].attention
    found = {
        key: module
        for key, module in model.model.diffusion_model.named_modules()
        if f"{type(module).__module__}.{type(module).__qualname__}".startswith(kind) and key.endswith(ending)
    }
    assert len(found) == FAMILIES[name].layers
    return found


@contextmanager
def truth(name, model, negative, alpha=ALPHA, only=None, where=None, rule="nasa", adaptive=False, positive=None):
    """NASA by hooks on the raw modules, for every row of every call.

    Args:
        only: (layer's name) -> whether it is steered.
        where: (layer's name, Z) -> how much the negative acts there, in a shape that fits Z.
        positive: the prompt, for rules that weigh it.
    """
    layout, network = TRUTHS[FAMILIES[name].layout], model.model.diffusion_model
    seen = {"model": model.model}

    def remember(key, part=lambda args, output: output):
        def after(module, args, output):
            seen[key] = part(args, output)

        return after

    def steer(key, layer):
        heads = getattr(layer, layout.heads)

        def before_output(_, args):
            (z,) = args

            def attention(conditioning):
                """Z and the sum of exp(q k / sqrt(d)), each [rows, tokens, heads, channels or 1]."""
                ((embedding, options),) = conditioning
                text = layout.text(network, key, embedding, options, seen)
                q = seen[layer, "q"]
                k, v = (x.expand(len(q), -1, -1) for x in (layout.keys(layer, text), layout.values(layer, text)))
                if layout.attend is not None:
                    return layout.attend(layer, q, k, v)
                q = q.unflatten(-1, (heads, -1)) if q.ndim == 3 else q
                q = layout.rotated(q, seen[layer, "arguments"]).transpose(1, 2)
                k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (k, v))
                scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
                gated = (scores.softmax(-1) @ v).transpose(1, 2) * layout.gates(layer, seen[layer, "arguments"])
                return gated, scores.double().exp().sum(-1, keepdim=True).transpose(1, 2)

            z_negative, e_negative = attention(negative)
            strength = alpha if where is None else alpha * where(key, z)[..., None]
            if rule != "nasa" or adaptive:
                z_positive, e_positive = attention(positive)
            if adaptive:
                strength = strength * (2 - 2 * e_positive / (e_positive + e_negative)).clamp(max=1).float()
            if rule == "nasa":
                change = -strength * z_negative
            elif rule == "difference":
                change = strength * (z_positive - z_negative)
            else:
                m, a = (e_negative / e_positive).float(), torch.as_tensor(strength).clamp(max=1)
                change = (z_positive - strength * m * z_negative) / (1 + a * m) - z_positive
            return (z + layout.placed(change.flatten(2)),)

        return before_output

    def arguments(layer):
        def before(_, args):
            seen[layer, "arguments"] = args

        return before

    with ExitStack() as stack:
        if hasattr(network, "time_embeddings"):
            stack.callback(network.time_embeddings.register_forward_hook(remember("time")).remove)
        for adaln in ("prompt_adaln_single", "audio_prompt_adaln_single"):
            if getattr(network, adaln, None) is not None:
                stack.callback(getattr(network, adaln).register_forward_hook(remember(adaln)).remove)
        for key, layer in attentions(name, model).items():
            if only is None or only(key):
                q, out = layer.get_submodule(layout.q), layer.get_submodule(layout.out)
                stack.callback(layer.register_forward_pre_hook(arguments(layer)).remove)
                stack.callback(q.register_forward_hook(remember((layer, "q"))).remove)
                stack.callback(out.register_forward_pre_hook(steer(key, layer)).remove)
        yield


@contextmanager
def recorded(name, model):
    """What the output projection of every cross-attention gives in the first call, by the attention's name."""
    given = {}

    def record(key):
        def after(_, args, output):
            given.setdefault(key, output)

        return after

    with ExitStack() as stack:
        for key, layer in attentions(name, model).items():
            out = layer.get_submodule(TRUTHS[FAMILIES[name].layout].out)
            stack.callback(out.register_forward_hook(record(key)).remove)
        yield given
