"""Transformers of the families that presets are for: the real classes of ComfyUI, narrow, with random weights."""

import inspect

import comfy.ldm.flux.model
import comfy.model_patcher
import comfy.supported_models
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
}  # fmt: skip


def build(backbone: str) -> comfy.model_patcher.ModelPatcher:
    """A model of a name in CONFIGS in fp32 on the CPU."""
    config_class, config = CONFIGS[backbone]
    if backbone.startswith("FLUX"):  # older versions know fewer parameters
        known = inspect.signature(comfy.ldm.flux.model.FluxParams).parameters
        config = {name: value for name, value in config.items() if name in known or name == "image_model"}
    config = getattr(comfy.supported_models, config_class)({**config, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
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
