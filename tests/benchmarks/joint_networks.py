"""Families of joint attention at their published size, and some of them as deep but narrow."""

import torch

from benchmarks.network import Network


def _network(title, config_class, config, width, tokens=(64, 64), **more):
    """Counted alone, which takes as long at any width: so its stand-in has a few blocks of its own width."""
    return Network(title, config_class, config, more.pop("narrow", {}), width, tokens, counted_only=True, **more)


def _counted(tokens):
    return {"attention_mask": torch.ones(1, tokens, dtype=torch.long)}


def _llama(tokens):
    return {"conditioning_llama3": torch.zeros(1, 32, tokens, 4096)}


def _numbered(tokens):
    """The last stands for the timestep."""
    return {"text_input_ids": torch.tensor([[1000] * (tokens - 1) + [151673]])}


_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_LUMINA = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "qk_norm": True}
#: T5 of Flux 1 and AuraFlow pads to 256 tokens, CLIP and T5 of SD 3 to 77 each, T5 and Llama of HiDream-I1 to 128 each,
#: and ComfyUI FLUX.2's to 512; the other encoders do not pad.
JOINT = {
    "flux": _network(
        "FLUX.1 dev", "Flux", _FLUX, 4096, (256, 20), channels=16, pooled=768,
        narrow={"depth": 1, "depth_single_blocks": 2},
    ),
    "flux2": _network(
        "FLUX.2 klein 4B", "Flux2",
        {**_FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
         "context_in_dim": 7680, "mlp_ratio": 3.0, "depth": 5, "depth_single_blocks": 20, "theta": 2000,
         "axes_dim": [32, 32, 32, 32], "patch_size": 1, "qkv_bias": False, "ops_bias": False, "guidance_embed": False,
         "global_modulation": True, "mlp_silu_act": True, "txt_ids_dims": [3]},
        7680, (512, 512), channels=128, scale=16, narrow={"depth": 1, "depth_single_blocks": 4},
    ),
    "chroma": _network(
        "Chroma", "Chroma",
        {key: _FLUX[key] for key in _FLUX if key != "guidance_embed"} | {
            "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072,
            "hidden_dim": 5120, "n_layers": 5, "vec_in_dim": None},
        4096, channels=16,
    ),
    "hunyuan_video": _network(
        "HunyuanVideo", "HunyuanVideo",
        {**_FLUX, "image_model": "hunyuan_video", "patch_size": [1, 2, 2], "theta": 256, "depth": 20,
         "depth_single_blocks": 40, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
         "vision_in_dim": None, "meanflow_sum": False},
        4096, channels=16, pooled=768, video=True,
    ),
    "sd35_large": _network(
        "SD 3.5 Large", "SD3",
        {"in_channels": 16, "depth": 38, "patch_size": 2, "adm_in_channels": 2048, "num_patches": 36864,
         "pos_embed_max_size": 192, "pos_embed_scaling_factor": None, "qk_norm": "rms", "context_embedder_config": {
             "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432}}},
        4096, (154, 64), channels=16, pooled=2048, narrow={"num_blocks": 4},
    ),
    "auraflow": _network("AuraFlow", "AuraFlow", {"max_seq": 9216, "cond_seq_dim": 2048}, 2048, (256, 256)),
    "qwen_image": _network(
        "Qwen-Image", "QwenImage", {"image_model": "qwen_image"}, 3584, channels=16, video=True,
        narrow={"num_layers": 2},
    ),
    "z_image": _network(
        "Z-Image", "ZImage",
        {**_LUMINA, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30,
         "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
         "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32},
        2560, channels=16, narrow={"n_layers": 6},
    ),
    "lumina2": _network(
        "Lumina 2", "Lumina2",
        {**_LUMINA, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "n_heads": 24, "n_kv_heads": 8,
         "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0},
        2304, channels=16,
    ),
    "omnigen2": _network(
        "OmniGen 2", "Omnigen2",
        {"image_model": "omnigen2", "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664],
         "hidden_size": 2520, "num_attention_heads": 21, "num_kv_heads": 7, "num_layers": 32, "text_feat_dim": 2048,
         "timestep_scale": 1000.0},
        2048, channels=16, options=_counted,
    ),
    "mochi": _network(
        "Mochi", "GenmoMochi",
        {"image_model": "mochi_preview", "depth": 48, "num_heads": 24, "hidden_size_x": 3072, "hidden_size_y": 1536,
         "mlp_ratio_x": 4.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False,
         "use_t5": True, "t5_feat_dim": 4096, "timestep_scale": 1000.0},
        4096, channels=12, video=True, options=_counted,
    ),
    "hidream": _network(
        "HiDream-I1", "HiDream",
        {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16,
         "num_single_layers": 32, "attention_head_dim": 128, "num_attention_heads": 20,
         "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4, "num_activated_experts": 2,
         "axes_dims_rope": [64, 32, 32], "max_resolution": [128, 128], "llama_layers": [*range(32), *[31] * 16]},
        4096, (128, 128), channels=16, pooled=2048, options=_llama,
    ),
    "hidream_o1": _network(
        "HiDream-O1", "HiDreamO1", {"image_model": "hidream_o1"}, 1, channels=3, scale=1, options=_numbered
    ),
    "krea2": _network("Krea 2", "Krea2", {"image_model": "krea2"}, 12 * 2560, channels=16, video=True),
    "lens": _network("Lens", "Lens", {"image_model": "lens"}, 4 * 2880, channels=128, scale=16),
    "mage_flow": _network("Mage-Flow", "MageFlow", {"image_model": "mage_flow"}, 2560, channels=128, scale=16),
    "ernie": _network("ERNIE-Image", "ErnieImage", {"image_model": "ernie"}, 3072, channels=128, scale=16),
    "joyimage": _network("JoyImage", "JoyImage", {"image_model": "joyimage"}, 4096, channels=16, video=True),
    "ideogram4": _network("Ideogram 4", "Ideogram4", {"image_model": "ideogram4"}, 53248, channels=128, scale=16),
    "boogu": _network("Boogu", "Boogu", {"image_model": "boogu"}, 4096, channels=16, options=_counted),
    "pixeldit": _network("PixelDiT", "PixelDiTT2I", {"image_model": "pixeldit_t2i"}, 2304, channels=3, scale=1),
    "cogvideox": _network(
        "CogVideoX 5B", "CogVideoX_T2V",
        {"image_model": "cogvideox", "num_attention_heads": 48, "num_layers": 42,
         "use_rotary_positional_embeddings": True},
        4096, channels=16, video=True,
    ),
}  # fmt: skip
#: What makes some of them narrow, for time and memory: there what a block costs beside its products counts most.
DEEP = {
    "flux": {"hidden_size": 384, "num_heads": 3},
    "sd35_large": {"depth": 6, "num_blocks": 38, "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 384}}},
    "qwen_image": {"num_attention_heads": 3},
    "z_image": {"dim": 384, "n_heads": 3, "n_kv_heads": 3},
}  # fmt: skip
