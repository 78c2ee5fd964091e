"""Transformers of the families that presets are for: the real classes of ComfyUI, narrow, with random weights."""

import inspect

import comfy.ldm.flux.model
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch

WIDTH = 32  # of the text, and of the pooled text
FLUX = {
    "context_in_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12], "theta": 10000, "guidance_embed": False, "txt_ids_dims": [],
}  # fmt: skip
CONFIGS = {
    "PixArt": ("PixArtSigma", {
        "image_model": "pixart_sigma", "hidden_size": 96, "num_heads": 4, "depth": 2, "in_channels": 4,
        "patch_size": 2, "micro_condition": False, "caption_channels": WIDTH, "pe_interpolation": 1,
    }),
    "SD 3.x": ("SD3", {
        "in_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": WIDTH,
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}},
        "pos_embed_max_size": 16, "num_patches": 256, "pos_embed_scaling_factor": None, "qk_norm": "rms",
    }),
    "FLUX.1": ("FluxSchnell", {
        **FLUX, "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": WIDTH, "patch_size": 2,
        "qkv_bias": True,
    }),
    "FLUX.2": ("Flux2", {
        **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "patch_size": 1,
        "axes_dim": [8, 8, 8, 8], "qkv_bias": False, "global_modulation": True, "mlp_silu_act": True,
        "ops_bias": False, "txt_ids_dims": [3],
    }),
    "Z-Image": ("ZImage", {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "n_layers": 1,
        "n_refiner_layers": 1, "n_heads": 8, "n_kv_heads": 8, "multiple_of": 32, "ffn_dim_multiplier": 1.0,
        "qk_norm": True, "cap_feat_dim": WIDTH, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64],
        "rope_theta": 256.0, "z_image_modulation": True, "time_scale": 1000.0,
    }),
    "Qwen-Image": ("QwenImage", {
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 1,
        "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
        "axes_dims_rope": (8, 12, 12), "pooled_projection_dim": WIDTH,
    }),
    "Wan": ("WAN21_T2V", {
        "image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 64, "freq_dim": 32, "text_dim": WIDTH,
        "num_heads": 2, "num_layers": 2, "in_dim": 16, "out_dim": 16,
    }),
    "LTX": ("LTXV", {
        "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 48, "attention_head_dim": 12,
        "num_attention_heads": 4, "caption_channels": WIDTH, "num_layers": 2,
    }),
    "Anima": ("Anima", {
        "image_model": "anima", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16,
        "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 48,
        "concat_padding_mask": True, "crossattn_emb_channels": WIDTH, "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 8, "num_blocks": 2, "num_heads": 2,
        "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
        "rope_enable_fps_modulation": False,
    }),
    "Krea 2": ("Krea2", {
        "image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 1, "multiplier": 2,
        "layers": 1, "patch": 2, "channels": 16, "txtlayers": 2, "txtheads": 2, "txtkvheads": 1,
    }),
    "Ernie-Image": ("ErnieImage", {
        "image_model": "ernie", "hidden_size": 64, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 64,
        "in_channels": 128, "out_channels": 128, "patch_size": 1, "text_in_dim": WIDTH, "rope_axes_dim": (8, 12, 12),
    }),
    "Boogu": ("Boogu", {
        "image_model": "boogu", "hidden_size": 48, "num_layers": 2, "num_double_stream_layers": 1,
        "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8,
        "axes_dim_rope": (8, 8, 8), "axes_lens": (64, 64, 64), "instruction_feat_dim": WIDTH,
    }),
    "Mage-Flow": ("MageFlow", {
        "image_model": "mage_flow", "in_channels": 128, "out_channels": 128, "num_layers": 2,
        "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
        "axes_dims_rope": (8, 12, 12),
    }),
    "Lens": ("Lens", {
        "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 2, "enc_hidden_dim": 16, "axes_dims_rope": (8, 12, 12),
        "selected_layer_index": (5, 11),
    }),
    "HiDream": ("HiDream", {
        "image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1,
        "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [WIDTH, WIDTH],
        "text_emb_dim": WIDTH, "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (8, 12, 12),
        "max_resolution": (64, 64), "llama_layers": [0, 1],
    }),
}  # fmt: skip


def build(backbone: str) -> comfy.model_patcher.ModelPatcher:
    """A model of a name in CONFIGS in fp32 on the CPU."""
    config_class, config = CONFIGS[backbone]
    if not hasattr(comfy.supported_models, config_class):
        pytest.skip(f"this ComfyUI has no {config_class}")
    if backbone.startswith("FLUX"):  # older versions know fewer parameters
        known = inspect.signature(comfy.ldm.flux.model.FluxParams).parameters
        config = {name: value for name, value in config.items() if name in known or name == "image_model"}
    config = getattr(comfy.supported_models, config_class)({**config, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    if backbone == "Anima":  # its text adapter has a fixed width, of 130M parameters
        model.diffusion_model.llm_adapter = None
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.1 if parameter.ndim == 1 else 1.0 / parameter[0].numel() ** 0.5
        parameter.data = noise * scale + (1.0 if parameter.ndim == 1 and name.endswith(("weight", "scale")) else 0.0)
    for _, buffer in model.diffusion_model.named_buffers():
        if torch.is_floating_point(buffer):
            buffer.data = torch.randn(buffer.shape, generator=generator) * 0.1
    model.requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
