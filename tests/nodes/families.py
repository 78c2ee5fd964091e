"""Every family of models with cross-attention that a ComfyUI may have: narrow, of random weights, by its own classes.

Random weights prove wiring, not quality. `build` makes the model, `conditioning` what its text encoder would hand over,
`sample` runs it. `REFUSED` holds models that NASA must refuse: they are built, never run.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import comfy.ldm.audio.embedders
import comfy.ldm.chroma.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.lumina.model
import comfy.ldm.qwen_image.model
import comfy.ldm.wan.model
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import comfy.supported_models
import comfy.utils
import pytest
import torch
from comfy.nested_tensor import NestedTensor

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "use_spatial_transformer": True, "legacy": False, "context_dim": 24,
    "use_temporal_attention": False, "use_temporal_resblock": False, "use_linear_in_transformer": True,
}  # fmt: skip
SDXL = {**UNET, "num_classes": "sequential", "adm_in_channels": 2816}
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 64, "freq_dim": 32, "text_dim": 24,
    "num_heads": 2, "num_layers": 2, "in_dim": 16, "out_dim": 16,
}  # fmt: skip
COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 48, "concat_padding_mask": True,
    "crossattn_emb_channels": 24, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True,
    "adaln_lora_dim": 8, "num_blocks": 3, "num_heads": 2, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_enable_fps_modulation": False,
}  # fmt: skip
COSMOS_1 = {
    **{key: COSMOS[key] for key in COSMOS if key != "rope_enable_fps_modulation"}, "image_model": "cosmos",
    "block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
PIXART = {"depth": 3, "hidden_size": 48, "num_heads": 4, "caption_channels": 24, "model_max_length": 10}
HUNYUAN = {
    "depth": 4, "hidden_size": 64, "num_heads": 4, "text_states_dim": 24, "text_states_dim_t5": 32, "text_len": 6,
    "text_len_t5": 8, "mlp_ratio": 2.0,
}  # fmt: skip
LTXV = {
    "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 48, "attention_head_dim": 12,
    "num_attention_heads": 4, "caption_channels": 24, "num_layers": 3,
}  # fmt: skip
LTXAV = {
    **LTXV, "image_model": "ltxav", "audio_in_channels": 128, "audio_attention_head_dim": 8,
    "audio_num_attention_heads": 4, "audio_cross_attention_dim": 32, "connector_attention_head_dim": 6,
    "connector_num_attention_heads": 4, "connector_num_layers": 1,
}  # fmt: skip
#: LTX-Video 2.3, whose text encoder gives a text for video and one for sound, side by side.
LTXAV_ADALN = {
    **LTXAV, "cross_attention_adaln": True, "apply_gated_attention": True, "caption_proj_before_connector": True,
    "caption_projection_first_linear": False, "connector_attention_head_dim": 12,
    "audio_connector_attention_head_dim": 8, "connector_apply_gated_attention": True,
}  # fmt: skip
KANDINSKY = {
    "image_model": "kandinsky5", "model_dim": 48, "ff_dim": 64, "time_dim": 24, "axes_dims": (4, 4, 4),
    "num_text_blocks": 2, "num_visual_blocks": 3, "in_text_dim": 24, "in_text_dim2": 20,
}  # fmt: skip

ACE = {
    "audio_model": "ace", "num_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2, "text_embedding_dim": 24,
    "lyric_hidden_size": 32, "lyric_encoder_vocab_size": 64, "max_position": 64, "ssl_latent_dims": [8, 8],
    "speaker_embedding_dim": 512,
}  # fmt: skip
ACE_15 = {
    "audio_model": "ace1.5", "hidden_size": 64, "text_hidden_dim": 24, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "encoder_hidden_size": 48, "encoder_num_heads": 4, "fsq_dim": 48,
    "encoder_intermediate_size": 64, "num_dit_layers": 2, "num_lyric_layers": 1, "num_timbre_layers": 1,
    "num_tokenizer_layers": 1,
}  # fmt: skip
AUDIO = {
    "audio_model": "dit1.0", "io_channels": 8, "embed_dim": 128, "num_heads": 4, "cond_token_dim": 64,
    "global_cond_dim": 128, "depth": 2, "project_cond_tokens": False,
}  # fmt: skip
#: Stable Audio 3, with two attentions in every layer, tokens for memory and no token for the timestep.
AUDIO_3 = {
    **AUDIO, "global_cond_dim": 64, "global_cond_type": "adaLN", "global_cond_shared_embed": True,
    "num_memory_tokens": 3, "norm_type": "rms_norm", "attn_kwargs": {"qk_norm": "rms", "differential": True},
    "timestep_features_type": "expo", "local_add_cond_dim": 9,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        config: the class in comfy.supported_models.
        unet: the arguments of its network, narrow.
        latent: the shape of one latent.
        layout: how text enters, a key of TRUTHS in test_families.py.
        layers: how many cross-attentions read the text.
        options: (tokens, random) -> what else the CONDITIONING of this family holds; random(*shape) -> tensor.
        positive: the same, for what only positive conds carry.
        narrowed: replaces parts whose width no argument sets; takes ComfyUI's BaseModel.
        settled: corrects random weights that would not do.
        width: of the text.
        sound: the shape of the sound that goes with a latent; () for none.
        batch: how many latents the tests sample at once.
    """

    config: str
    unet: dict
    latent: tuple[int, ...]
    layout: str
    layers: int
    options: Callable = lambda tokens, random: {}
    positive: Callable = lambda random: {}
    narrowed: Callable = lambda model: None
    settled: Callable = lambda network: None
    width: int = 24
    sound: tuple[int, ...] = ()
    batch: int = 2


def _pooled(tokens, random):
    return {"pooled_output": random(1, 1280)}


def _padded(tokens, random):
    """The last two tokens are padding, as a T5 that pads to a fixed length hands over."""
    return {"attention_mask": torch.tensor([[1] * (tokens - 2) + [0] * 2])}


def _before_connectors(tokens, random):
    return {"unprocessed_ltxav_embeds": True}


def _hunyuan_dit(tokens, random):
    return {
        "attention_mask": torch.tensor([[1] * (tokens - 3) + [0] * 3]),
        "conditioning_mt5xl": random(1, tokens + 2, 32),
        "attention_mask_mt5xl": torch.tensor([[1] * (tokens - 2) + [0] * 4]),
    }


def _clip_vision(random):
    return {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=random(1, 5, 1280))}


def _reference(random):
    """A picture whose tokens go before or after the video's own."""
    return {"reference_latents": [random(1, 16, 1, 8, 8)]}


def _anima(tokens, random):
    """Many T5 tokens, as the rest of the 512 that the layers read is 0."""
    return {"t5xxl_ids": torch.arange(30 * tokens), "t5xxl_weights": 1 + 0.1 * random(30 * tokens)}


def _kandinsky(tokens, random):
    return {"pooled_output": random(1, 20)}


def _numbered(tokens, random):
    """Words, the last of them the one that stands for the timestep."""
    numbers = (1000 * random(1, tokens - 1)).long().abs()
    return {"text_input_ids": torch.nn.functional.pad(numbers, (0, 1), value=151673)}


def _narrow_adapter(model):
    """Anima's own text adapter, of fixed width otherwise (130M parameters)."""
    import comfy.ldm.anima.model

    model.diffusion_model.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
        24,
        24,
        24,
        num_layers=2,
        num_heads=2,
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )


def _narrow_audio(model):
    """HuMo's own audio projection, of fixed width otherwise (40M parameters)."""
    model.diffusion_model.audio_proj = comfy.ldm.wan.model.AudioProjModel(
        8, 5, 4, intermediate_dim=8, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )


def _narrow_byt5(model):
    """HunyuanVideo's own mapper of ByT5, of fixed width otherwise (7M parameters)."""
    model.diffusion_model.byt5_in = comfy.ldm.hunyuan_video.model.ByT5Mapper(
        16, 8, 8, 48, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )


def _average_audio(network):
    """S2V divides by the sum of these."""
    network.casual_audio_encoder.weights.data.fill_(1.0)


def _place(network):
    """SD3's table of positions, which a checkpoint fills; softmaxes less sharp, which would magnify rounding."""
    for name, parameter in network.named_parameters():
        if ".qkv." in name:
            parameter.data *= 0.5
    network.pos_embed.copy_(torch.randn(network.pos_embed.shape, generator=torch.Generator().manual_seed(1)))


def _lyrics(tokens, random):
    return {"conditioning_lyrics": torch.arange(1, tokens + 2)[None], "lyrics_strength": 0.7}


def _narrow_lyrics(model):
    """ACE-Step's own encoder of lyrics, of fixed width otherwise (100M parameters)."""
    import comfy.ldm.ace.lyric_encoder

    model.diffusion_model.lyric_encoder = comfy.ldm.ace.lyric_encoder.ConformerEncoder(
        input_size=32,
        output_size=32,
        attention_heads=2,
        linear_units=32,
        num_blocks=1,
        static_chunk_size=0,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    ).eval()


def _encoded_lyrics(tokens, random):
    return {"conditioning_lyrics": random(1, tokens + 1, 24)}


def _duration(tokens, random):
    return {"seconds_start": 3, "seconds_total": 40 + tokens}


def _narrow_seconds(model):
    """Stable Audio's own embedders of seconds, of fixed width otherwise."""
    for name in ("seconds_start_embedder", "seconds_total_embedder"):
        if hasattr(model, name):
            expo = "global_cond_shared_embed" in model.model_config.unet_config
            more = {"fourier_features_type": "expo"} if expo else {}
            embedder = comfy.ldm.audio.embedders.NumberConditioner(64, 0, 384, **more)
            for parameter in embedder.parameters():
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3
            setattr(model, name, embedder)


def _turning(network):
    """Stable Audio's frequencies, which a checkpoint fills, and its norms."""
    frequencies = network.transformer.rotary_pos_emb.inv_freq
    frequencies.copy_(10000 ** -(torch.arange(len(frequencies)) / len(frequencies)))
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            parameter.data += 1.0


def _scale(network):
    """The weights of norms, which in ComfyUI 0.3.75 are called scale: near 1, or little of the text comes through."""
    for name, parameter in network.named_parameters():
        if name.endswith(".scale"):
            parameter.data += 1.0


def _unet(config, layers, unet, **more):
    return Family(config, unet, (4, 8, 8), "unet", layers, **{"options": _pooled, **more})


def _sdxl(config, layers, depth, middle, output):
    """The real depths of SDXL and its children, in three levels of as many residual blocks each."""
    depths = {"transformer_depth": depth, "transformer_depth_middle": middle, "transformer_depth_output": output}
    return _unet(config, layers, {**SDXL, **depths, "num_res_blocks": [len(depth) // 3] * 3})


def _wan(config, layers=2, latent=(16, 3, 8, 8), **more):
    unet = {**WAN, **more.pop("unet", {})}
    return Family(config, unet, latent, "wan", layers, **more)


FAMILIES = {
    "SD 1.5": _unet(
        "SD15", 16,
        {**UNET, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "use_linear_in_transformer": False,
         "transformer_depth": [1] * 6 + [0, 0], "transformer_depth_middle": 1,
         "transformer_depth_output": [1] * 9 + [0] * 3},
    ),
    "SD 2.1": _unet(
        "SD20", 7,
        {**UNET, "model_channels": 64, "num_res_blocks": [1, 1], "channel_mult": [1, 2],
         "transformer_depth": [1, 1], "transformer_depth_middle": 1, "transformer_depth_output": [1] * 4},
    ),
    "SDXL": _sdxl("SDXL", 70, [0, 0, 2, 2, 10, 10], 10, [0, 0, 0, 2, 2, 2, 10, 10, 10]),
    "SSD-1B": _sdxl("SSD1B", 34, [0, 0, 2, 2, 4, 4], -1, [0, 0, 0, 1, 1, 2, 10, 4, 4]),
    "Vega": _sdxl("Segmind_Vega", 15, [0, 0, 1, 1, 2, 2], -1, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    "KOALA-700M": _sdxl("KOALA_700M", 21, [0, 2, 5], -2, [0, 0, 2, 2, 5, 5]),
    "KOALA-1B": _sdxl("KOALA_1B", 30, [0, 2, 6], 6, [0, 0, 2, 2, 6, 6]),
    "SVD": _unet(
        "SVD_img2vid", 10,  # a spatial and a temporal one in each of five places
        {**SDXL, "in_channels": 8, "model_channels": 64, "adm_in_channels": 768, "num_res_blocks": [1, 1],
         "channel_mult": [1, 2], "transformer_depth": [1, 0], "transformer_depth_middle": 1,
         "transformer_depth_output": [1, 1, 1, 0], "extra_ff_mix_layer": True, "use_spatial_context": True,
         "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1],
         "use_temporal_resblock": True, "use_temporal_attention": True, "disable_temporal_crossattention": False},
        options=lambda tokens, random: {"concat_latent_image": random(1, 4, 8, 8)},
    ),
    "PixArt-alpha": Family(
        "PixArtAlpha", {**PIXART, "image_model": "pixart_alpha", "micro_condition": True}, (4, 48, 48), "pixart", 3
    ),
    "PixArt-sigma": Family(
        "PixArtSigma", {**PIXART, "image_model": "pixart_sigma", "micro_condition": False}, (4, 48, 48), "pixart", 3
    ),
    "HunyuanDiT": Family(
        "HunyuanDiT", {**HUNYUAN, "image_model": "hydit"}, (4, 8, 8), "hunyuan_dit", 4, _hunyuan_dit
    ),
    "HunyuanDiT 1.0": Family(
        "HunyuanDiT1", {**HUNYUAN, "image_model": "hydit1", "size_cond": True, "use_style_cond": True},
        (4, 8, 8), "hunyuan_dit", 4, _hunyuan_dit,
    ),
    "LTX-Video": Family("LTXV", LTXV, (128, 2, 4, 4), "ltx_video", 3, _padded),
    "LTX-Video with adaln": Family(
        "LTXV", {**LTXV, "cross_attention_adaln": True}, (128, 2, 4, 4), "ltx_video", 3, _padded
    ),
    "LTX-Video 2": Family("LTXAV", LTXAV, (128, 2, 4, 4), "ltx_video_2", 6, _before_connectors, sound=(8, 5, 16)),
    "LTX-Video 2.3": Family(
        "LTXAV", LTXAV_ADALN, (128, 2, 4, 4), "ltx_video_2", 6, _before_connectors, width=80, sound=(8, 5, 16)
    ),
    "Wan 2.1 T2V": _wan("WAN21_T2V"),
    "Wan 2.1 I2V": _wan("WAN21_I2V", unet={"model_type": "i2v", "in_dim": 36}, positive=_clip_vision),
    "Wan 2.1 FunControl": _wan(
        "WAN21_FunControl2V", unet={"model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16},
        positive=lambda random: {**_clip_vision(random), **_reference(random)},
    ),
    "Wan 2.1 VACE": _wan(
        "WAN21_Vace", 3, unet={"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
        positive=lambda random: {"vace_frames": [random(1, 32, 3, 8, 8)], "vace_mask": [torch.ones(1, 64, 3, 8, 8)]},
    ),
    "Wan 2.1 Camera": _wan(
        "WAN21_Camera", unet={"model_type": "camera", "in_dim": 32},
        positive=lambda random: {**_clip_vision(random), "camera_conditions": random(1, 24, 3, 64, 64)},
    ),
    "Wan 2.1 HuMo": _wan(
        "WAN21_HuMo", unet={"model_type": "humo"}, narrowed=_narrow_audio,
        positive=lambda random: {**_reference(random), "audio_embed": random(1, 3, 8, 5, 4)},
    ),
    "Wan 2.2 T2V 5B": _wan("WAN22_T2V", latent=(48, 3, 8, 8), unet={"in_dim": 48, "out_dim": 48}),
    "Wan 2.2 I2V 14B": _wan("WAN21_T2V", unet={"in_dim": 36}),
    "Wan 2.2 Camera": _wan(
        "WAN22_Camera", unet={"model_type": "camera_2.2", "in_dim": 36},
        positive=lambda random: {"camera_conditions": random(1, 24, 3, 64, 64)},
    ),
    "Wan 2.2 S2V": _wan(
        "WAN22_S2V", unet={"model_type": "s2v", "audio_dim": 16, "num_audio_token": 2, "audio_inject_layers": [0]},
        settled=_average_audio, positive=lambda random: {**_reference(random), "audio_embed": random(1, 25, 16, 12)},
    ),
    "Cosmos-Predict2 T2I": Family("CosmosT2IPredict2", COSMOS, (16, 1, 8, 8), "cosmos", 3),
    "Cosmos-Predict2 I2V": Family("CosmosI2VPredict2", {**COSMOS, "in_channels": 17}, (16, 3, 8, 8), "cosmos", 3),
    "Cosmos 1": Family("CosmosT2V", COSMOS_1, (16, 3, 8, 8), "cosmos_1", 3),
    "Anima": Family(
        "Anima", {**COSMOS, "image_model": "anima"}, (16, 1, 8, 8), "anima", 3, _anima, narrowed=_narrow_adapter
    ),
    "Kandinsky 5": Family(
        "Kandinsky5", {**KANDINSKY, "visual_embed_dim": 132}, (16, 2, 8, 8), "kandinsky", 3, _kandinsky
    ),
    "Kandinsky 5 Image": Family(
        "Kandinsky5Image", {**KANDINSKY, "visual_embed_dim": 64}, (16, 8, 8), "kandinsky", 3, _kandinsky
    ),
    "ACE-Step": Family("ACEStep", ACE, (8, 16, 10), "ace_step", 2, _lyrics, narrowed=_narrow_lyrics),
    "ACE-Step 1.5": Family("ACEStep15", ACE_15, (64, 17), "ace_step_15", 2, _encoded_lyrics),
    "Stable Audio": Family(
        "StableAudio", AUDIO, (8, 17), "stable_audio", 2, _duration, narrowed=_narrow_seconds, settled=_turning,
        width=64,
    ),
    "Stable Audio 3": Family(
        "StableAudio3", AUDIO_3, (8, 17), "stable_audio", 2, _duration, narrowed=_narrow_seconds, settled=_turning,
        width=64,
    ),
}  # fmt: skip


def _with_pooled(tokens, random):
    return {"pooled_output": random(1, 20)}


def _with_llama(tokens, random):
    """Three layers of Llama, of another length than T5's text, and in the wrong order for the model."""
    return {"pooled_output": random(1, 20), "conditioning_llama3": random(1, 3, tokens - 2, 28)}


def _degraded(tokens, random):
    """The picture that PiD makes larger."""
    return {"lq_latent": random(1, 16, 1, 1), "degrade_sigma": torch.tensor([0.3])}


def _rotating(network):
    """MiniMax's frequencies, which a checkpoint fills."""
    network.rope.inv_freq.copy_(10.0 ** -torch.arange(len(network.rope.inv_freq)))


def _without_pooled(tokens, random):
    """As encoders without CLIP hand over, for ComfyUI 0.3.75 asks."""
    return {"pooled_output": None}


def _counted(tokens, random):
    """A mask without padding, whose sum OmniGen 2 takes for the number of tokens."""
    return {"attention_mask": torch.ones(1, tokens, dtype=torch.long)}


FLUX = {
    "image_model": "flux", "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2.0, "depth": 2, "depth_single_blocks": 2,
    "qkv_bias": True, "in_channels": 16, "out_channels": 16, "vec_in_dim": 20, "context_in_dim": 24,
    "axes_dim": [4, 10, 10], "theta": 10000, "patch_size": 2, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = {
    **FLUX, "image_model": "flux2", "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False,
    "ops_bias": False, "vec_in_dim": None, "patch_size": 1, "axes_dim": [6, 6, 6, 6], "txt_ids_dims": [3],
    "in_channels": 128, "out_channels": 128,
}  # fmt: skip
CHROMA = {
    **FLUX, "image_model": "chroma", "in_dim": 64, "out_dim": 48, "hidden_dim": 32, "n_layers": 1,
    "in_channels": 64, "out_channels": 64, "vec_in_dim": None,
}  # fmt: skip
RADIANCE = {
    **CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 4,
    "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 3, "nerf_max_freqs": 2, "nerf_tile_size": 0,
    "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
    "use_sequential_txt_ids": True,
}  # fmt: skip
HUNYUAN_VIDEO = {
    **FLUX, "image_model": "hunyuan_video", "patch_size": [1, 2, 2], "theta": 256, "byt5": False, "meanflow": False,
    "meanflow_sum": False, "use_cond_type_embedding": False, "vision_in_dim": None,
}  # fmt: skip
HUNYUAN_VIDEO_15 = {
    **HUNYUAN_VIDEO, "patch_size": [1, 1, 1], "vec_in_dim": None, "guidance_embed": False, "in_channels": 65,
    "out_channels": 32, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 12, "meanflow_sum": True,
}  # fmt: skip
HUNYUAN_IMAGE = {
    **HUNYUAN_VIDEO, "patch_size": [1, 1], "axes_dim": [12, 12], "vec_in_dim": None, "byt5": True, "meanflow": True,
    "in_channels": 64, "out_channels": 64,
}  # fmt: skip
AURAFLOW = {
    "dim": 48, "n_layers": 4, "n_double_layers": 2, "n_heads": 2, "global_conddim": 32, "cond_seq_dim": 24,
    "max_seq": 64,
}  # fmt: skip
OMNIGEN2 = {
    "image_model": "omnigen2", "hidden_size": 48, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
    "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": [8, 8, 8], "axes_lens": [16, 16, 16], "text_feat_dim": 24,
}  # fmt: skip
QWEN_IMAGE = {
    "image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3,
    "joint_attention_dim": 24, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": 24, "n_layers": 2,
    "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "multiple_of": 8, "ffn_dim_multiplier": 1.0, "qk_norm": True,
    "axes_dims": [8, 8, 8], "axes_lens": [300, 512, 512],
}  # fmt: skip
#: Its modulation is 256 wide, whatever the network is.
ZIMAGE = {
    **LUMINA, "dim": 256, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "rope_theta": 256.0, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 5,
}  # fmt: skip
LENS = {
    "image_model": "lens", "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3, "enc_hidden_dim": 24,
    "axes_dims_rope": [4, 6, 6], "selected_layer_index": [5, 11],
}  # fmt: skip
ERNIE = {
    "image_model": "ernie", "hidden_size": 48, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 64,
    "text_in_dim": 24, "rope_axes_dim": (8, 8, 8),
}  # fmt: skip
JOYIMAGE = {
    "image_model": "joyimage", "hidden_size": 256, "num_attention_heads": 2, "num_layers": 2, "text_dim": 24,
    "mlp_width_ratio": 1.0,
}  # fmt: skip
ZIMAGE_PIXEL = {
    **ZIMAGE, "image_model": "zimage_pixel", "patch_size": 4, "in_channels": 3, "decoder_hidden_size": 16,
    "decoder_num_res_blocks": 1, "decoder_max_freqs": 2, "decoder_in_channels": 48,
}  # fmt: skip
KREA2 = {
    "image_model": "krea2", "features": 64, "heads": 4, "kvheads": 2, "tdim": 32, "layers": 2, "txtdim": 12,
    "txtlayers": 2, "txtheads": 2, "txtkvheads": 1,
}  # fmt: skip
IDEOGRAM4 = {
    "image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 24, "intermediate_size": 64, "adaln_dim": 16, "llm_features_dim": 24,
    "rope_theta": 5000000, "mrope_section": [4, 4, 4],
}  # fmt: skip
BOOGU = {
    **{key: OMNIGEN2[key] for key in OMNIGEN2 if key != "text_feat_dim"}, "image_model": "boogu",
    "num_double_stream_layers": 2, "instruction_feat_dim": 24,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "depth": 2, "adm_in_channels": 20, "num_patches": 64, "pos_embed_max_size": 8,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
}  # fmt: skip
#: Its wide layers for video are of fixed width: that ratio.
MOCHI = {
    "image_model": "mochi_preview", "depth": 3, "hidden_size_x": 48, "hidden_size_y": 40, "mlp_ratio_x": 256.0,
    "num_heads": 2, "in_channels": 12, "use_t5": True, "t5_feat_dim": 24, "qk_norm": True, "qkv_bias": False,
    "learn_sigma": False, "timestep_scale": 1000.0,
}  # fmt: skip

COGVIDEO = {
    "image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32, "text_embed_dim": 24,
    "num_layers": 2, "time_embed_dim": 16, "use_rotary_positional_embeddings": True,
}  # fmt: skip
HIDREAM = {
    "image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2,
    "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": [24, 28],
    "text_emb_dim": 20, "axes_dims_rope": [8, 4, 4], "max_resolution": [8, 8], "llama_layers": [0, 2, 1, 1],
}  # fmt: skip
#: A language model, with its own vocabulary, as the numbers of some tokens count.
HIDREAM_O1 = {
    "image_model": "hidream_o1", "patch_size": 32,
    "text_config_overrides": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "rope_dims": [4, 2, 2],
    },
    "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "depth": 1},
}  # fmt: skip
PIXELDIT = {
    "image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 48, "pixel_hidden_size": 8, "patch_size": 8,
    "pixel_attn_hidden_size": 48, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1, "txt_embed_dim": 24,
    "txt_max_length": 16,
}  # fmt: skip
PID = {**PIXELDIT, "image_model": "pid", "lq_hidden_dim": 32, "lq_num_res_blocks": 1}
MINIMAX = {
    "image_model": "minimax_h3", "hidden_size": 48, "num_layers": 2, "token_refiner_num_layers": 1,
    "num_attention_heads": 2, "attention_head_dim": 32, "ffn_hidden_size": 64, "text_dim": 24,
    "time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4,
}  # fmt: skip

#: Families with joint attention; `layers` counts the blocks, and `layout` is a key of NETWORKS in joint_truths.
JOINT = {
    "Flux": Family("Flux", FLUX, (16, 6, 8), "flux", 4, _with_pooled),
    "Flux schnell": Family(
        "FluxSchnell",
        {**FLUX, "guidance_embed": False, "depth": 1, "depth_single_blocks": 1},
        (16, 7, 5),
        "flux",
        2,
        _with_pooled,
    ),
    "Flux 2": Family("Flux2", FLUX2, (128, 4, 4), "flux", 4, _with_pooled),
    "Ovis-Image": Family(
        "Flux",
        {
            **FLUX,
            "guidance_embed": False,
            "vec_in_dim": None,
            "txt_norm": True,
            "yak_mlp": True,
            "txt_ids_dims": [1, 2],
        },
        (16, 6, 8),
        "ovis",
        4,
    ),
    "LongCat": Family(
        "LongCatImage",
        {**FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
        (16, 6, 8),
        "flux",
        4,
    ),
    "Lumina 2": Family("Lumina2", LUMINA, (16, 6, 7), "lumina", 2),
    "NewBie": Family("Lumina2", {**LUMINA, "clip_text_dim": 20}, (16, 6, 8), "lumina", 2, _with_pooled),
    "Z-Image": Family("ZImage", ZIMAGE, (16, 6, 7), "lumina", 2),
    "Z-Image Omni": Family("ZImage", {**ZIMAGE, "siglip_feat_dim": 12}, (16, 6, 8), "lumina", 2),
    "Z-Image of pixels": Family("ZImagePixelSpace", ZIMAGE_PIXEL, (3, 14, 16), "lumina", 2),
    "Krea 2": Family("Krea2", KREA2, (16, 1, 6, 7), "krea2", 2),
    "Chroma": Family("Chroma", CHROMA, (16, 6, 7), "chroma", 4, _without_pooled),
    "Chroma Radiance": Family("ChromaRadiance", RADIANCE, (3, 14, 12), "chroma", 4, _without_pooled, settled=_scale),
    "HunyuanVideo": Family("HunyuanVideo", HUNYUAN_VIDEO, (16, 3, 6, 4), "hunyuan_video", 4, _with_pooled),
    "HunyuanVideo I2V": Family(
        "HunyuanVideoI2V",
        {**HUNYUAN_VIDEO, "in_channels": 33, "depth": 1, "depth_single_blocks": 1},
        (16, 3, 6, 4),
        "hunyuan_video",
        2,
        lambda tokens, random: {**_with_pooled(tokens, random), "concat_latent_image": random(1, 16, 3, 6, 4)},
    ),
    "HunyuanVideo 1.5": Family(
        "HunyuanVideo15",
        HUNYUAN_VIDEO_15,
        (32, 2, 3, 4),
        "hunyuan_video",
        4,
        _without_pooled,
        narrowed=_narrow_byt5,
    ),
    "HunyuanImage 2.1": Family(
        "HunyuanImage21", HUNYUAN_IMAGE, (64, 4, 5), "hunyuan_video", 4, _without_pooled, narrowed=_narrow_byt5
    ),
    "AuraFlow": Family("AuraFlow", AURAFLOW, (4, 6, 7), "auraflow", 4),
    "Ideogram 4": Family("Ideogram4", IDEOGRAM4, (128, 3, 4), "ideogram4", 2),
    "Boogu": Family("Boogu", BOOGU, (16, 6, 7), "omnigen2", 4, _counted),
    "OmniGen 2": Family("Omnigen2", OMNIGEN2, (16, 6, 7), "omnigen2", 2, _counted),
    "Qwen-Image": Family("QwenImage", QWEN_IMAGE, (16, 1, 6, 7), "qwen_image", 2),
    "Qwen-Image Edit": Family(  # 2511, whose reference pictures stand at timestep 0
        "QwenImage", {**QWEN_IMAGE, "default_ref_method": "index_timestep_zero"}, (16, 1, 6, 8), "qwen_image", 2
    ),
    "Qwen-Image Layered": Family(
        "QwenImage",
        {**QWEN_IMAGE, "use_additional_t_cond": True, "default_ref_method": "negative_index"},
        (16, 3, 6, 4),
        "qwen_image",
        2,
    ),
    "Mage-Flow": Family("MageFlow", {**QWEN_IMAGE, "image_model": "mage_flow"}, (128, 3, 5), "qwen_image", 2),
    "Lens": Family("Lens", LENS, (128, 5, 4), "lens", 2, width=48),
    "Lens of one layer": Family("Lens", {**LENS, "multi_layer_encoder_feature": False}, (128, 4, 4), "lens", 2),
    "ERNIE-Image": Family("ErnieImage", ERNIE, (128, 4, 5), "ernie", 2),
    "JoyImage": Family("JoyImage", JOYIMAGE, (16, 1, 6, 7), "joyimage", 2),
    "SD 3": Family("SD3", SD3, (16, 6, 8), "sd3", 2, _with_pooled, settled=_place),
    "SD 3.5 large": Family(
        "SD3",
        {**SD3, "qk_norm": "rms", "depth": 2, "num_blocks": 3},
        (16, 6, 8),
        "sd3",
        3,
        _with_pooled,
        settled=_place,
    ),
    "SD 3.5 medium": Family(
        "SD3",
        {**SD3, "qk_norm": "rms", "x_block_self_attn_layers": [0]},
        (16, 6, 8),
        "sd3",
        2,
        _with_pooled,
        settled=_place,
    ),
    "Mochi": Family("GenmoMochi", MOCHI, (12, 2, 6, 8), "mochi", 3, _padded),
    "CogVideoX": Family("CogVideoX_T2V", COGVIDEO, (16, 2, 6, 8), "cogvideox", 2),
    "CogVideoX 1.5": Family("CogVideoX_T2V", {**COGVIDEO, "patch_size_t": 2}, (16, 3, 6, 7), "cogvideox", 2),
    "HiDream-I1": Family("HiDream", HIDREAM, (16, 6, 8), "hidream", 4, _with_llama),
    "HiDream-O1": Family("HiDreamO1", HIDREAM_O1, (3, 64, 96), "hidream_o1", 3, _numbered, width=1),
    "PixelDiT": Family("PixelDiTT2I", PIXELDIT, (3, 20, 24), "pixeldit", 2),
    "PiD": Family("PiD", PID, (3, 16, 24), "pixeldit", 2, _degraded),
    "MiniMax H3": Family(
        "MiniMaxH3", MINIMAX, (24, 2, 4, 6), "minimax", 2, settled=_rotating, sound=(32, 2, 5), batch=1
    ),
}
ALL = FAMILIES | JOINT


def families(*layouts):
    """The names of the families of these layouts."""
    return [name for name, family in FAMILIES.items() if family.layout in layouts]


#: Arguments of networks that older versions do not know, and the parts that they add.
NEWER = {
    "cross_attention_adaln": "cross_attention_adaln", "txt_norm": "txt_norm", "siglip_feat_dim": "siglip_embedder",
    "clip_text_dim": "clip_text_pooled_proj", "default_ref_method": "default_ref_method",
}  # fmt: skip


def _accepted(unet):
    """Without what another version does not know."""
    if unet.get("image_model") == "lumina2":
        known = inspect.signature(comfy.ldm.lumina.model.NextDiT).parameters
        return {key: unet[key] for key in unet if key in known}
    parameters = {
        "flux": comfy.ldm.flux.model.FluxParams,
        "flux2": comfy.ldm.flux.model.FluxParams,
        "chroma": comfy.ldm.chroma.model.ChromaParams,
        "chroma_radiance": comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
        "hunyuan_video": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
        "qwen_image": comfy.ldm.qwen_image.model.QwenImageTransformer2DModel,
    }.get(unet.get("image_model"))
    if parameters is None:
        return unet
    return {key: unet[key] for key in unet if key in {*inspect.signature(parameters).parameters, "image_model"}}


def make_patcher(config, unet):
    config_class = getattr(comfy.supported_models, config, None)
    if config_class is None:
        pytest.skip(f"this ComfyUI has no {config}")
    config = config_class(_accepted(unet) | {"dtype": torch.float32})
    config.unet_config |= _accepted(unet)  # narrow, also where the class has widths of its own
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = config.get_model(_seconds(type(config)), "", device="cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _seconds(config):
    """What Stable Audio's models need of a checkpoint to be made."""
    if not issubclass(config, comfy.supported_models.StableAudio):
        return {}
    expo = {"fourier_features_type": "expo"} if "global_cond_shared_embed" in config.unet_config else {}
    weights = comfy.ldm.audio.embedders.NumberConditioner(768, **expo).state_dict()
    names = "seconds_start", "seconds_total"
    return {f"conditioner.conditioners.{name}.{key}": weights[key] for name in names for key in weights}


def build(name, **narrower):
    """The family's ModelPatcher, fp32 on the CPU; skips the test where this ComfyUI has no such family.

    Args:
        narrower: of its network's arguments, those to change.
    """
    family = ALL[name]
    model = make_patcher(family.config, family.unet | narrower)
    network = model.model.diffusion_model
    newer = [part for argument, part in NEWER.items() if argument in family.unet]
    if not all(hasattr(network, part) for part in newer):
        pytest.skip(f"this ComfyUI has no {name}")
    family.narrowed(model.model)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        noise *= 0.1 if parameter.ndim < 2 else 1.5 / parameter[0].numel() ** 0.5
        parameter.data = noise + (1.0 if parameter.ndim == 1 and key.endswith("weight") else 0.0)  # a norm's
    family.settled(network)
    model.model.requires_grad_(False)
    return model


def conditioning(name, seed, tokens=12, positive=False, **options):
    """What the family's text encoder hands over: CONDITIONING of one prompt, [1, tokens, width]."""
    family = ALL[name]
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    embedding = random(1, tokens, family.width)
    more = family.options(tokens, random) | (family.positive(random) if positive else {})
    if "text_input_ids" in more:
        embedding = more["text_input_ids"].unsqueeze(-1).float()
    return [[embedding, {**more, **options}]]


class Apart(comfy.samplers.CFGGuider):
    """CFG in two calls, the positive one steered by hand."""

    def __init__(self, model, steering):
        super().__init__(model)
        self.steering = steering

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, as in ComfyUI
        def predicted(conds):
            return comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[conds]], x, timestep, model_options)[0]

        with self.steering():
            positive = predicted("positive")
        negative = predicted("negative")
        return negative + (positive - negative) * self.cfg


def sample_apart(name, model, positive, negative, cfg, steering, batch=None):
    """As `sample`, with CFG in two calls, the first of them inside of steering()."""
    return sample(name, model, positive, negative, cfg, batch=batch, guider=lambda model: Apart(model, steering))


def sample(
    name, model, positive, negative=None, cfg=1.0, steps=2, batch=None, seed=7, mask=None,
    guider=comfy.samplers.CFGGuider,
):  # fmt: skip
    """Latents [batch, ...] of a CFGGuider with the euler sampler; with sound in one row, as ComfyUI packs them."""
    guider = guider(model)
    guider.set_conds(positive, negative or positive)
    guider.set_cfg(cfg)
    batch = batch or ALL[name].batch
    latent, generator = torch.zeros(batch, *ALL[name].latent), torch.Generator().manual_seed(seed)
    noise = torch.randn(latent.shape, generator=generator)
    if ALL[name].sound:
        latent = NestedTensor([latent, torch.zeros(batch, *ALL[name].sound)])
        noise = NestedTensor([noise, torch.randn(batch, *ALL[name].sound, generator=generator)])
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        sampled = guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
    return comfy.utils.pack_latents(sampled.unbind())[0] if ALL[name].sound else sampled
