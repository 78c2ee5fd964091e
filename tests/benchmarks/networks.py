"""Full-size networks of random weights, as ComfyUI builds them, and random texts of the right length."""

import inspect
import math
from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.ldm.flux.model import FluxParams

from benchmarks.joint_networks import DEEP, JOINT
from benchmarks.network import Network

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False,
}  # fmt: skip
NARROW_UNET = {
    "model_channels": 64, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 1],
    "transformer_depth_middle": 1, "transformer_depth_output": [0, 0, 1, 1],
}  # fmt: skip


NETWORKS = {
    "sd15": Network(
        "SD 1.5",
        "SD15",
        UNET | {
            "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "use_linear_in_transformer": False, "context_dim": 768,
        },
        narrow=NARROW_UNET,
        width=768,
    ),
    "sdxl": Network(
        "SDXL",
        "SDXL",
        UNET | {
            "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
            "num_classes": "sequential", "adm_in_channels": 2816,
        },
        narrow=NARROW_UNET,
        width=2048,
    ),
    # T5 is not padded by ComfyUI: a sentence, and a short list of what is not wanted.
    "pixart": Network(
        "PixArt-alpha XL/2",
        "PixArtAlpha",
        {
            "image_model": "pixart_alpha", "micro_condition": True, "num_heads": 16, "patch_size": 2,
            "hidden_size": 1152, "in_channels": 4, "depth": 28, "model_max_length": 120,
            "input_size": 128, "pe_interpolation": 2,
        },
        narrow={"num_heads": 4, "hidden_size": 96, "depth": 2},
        width=4096,
        tokens=(40, 20),
    ),
    **JOINT,
}  # fmt: skip
NETWORKS |= {
    f"{name}_deep": replace(
        NETWORKS[name],
        title=f"{NETWORKS[name].title}, narrow",
        config=NETWORKS[name].config | narrow,
        counted_only=False,
    )
    for name, narrow in DEEP.items()
}


def build(network: Network, dtype: torch.dtype, narrow: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The network with random weights that keep its features near 1: they prove nothing about pictures."""
    config = network.config | (network.narrow if narrow else {}) | {"dtype": dtype}
    if "txt_ids_dims" not in inspect.get_annotations(FluxParams):  # an older ComfyUI
        config.pop("txt_ids_dims", None)
    config = getattr(comfy.supported_models, network.config_class)(config)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device="meta" if network.counted_only else "cpu")
    model.requires_grad_(False)
    if network.counted_only:
        _in_one_place(model.diffusion_model)
        return _patcher(model)
    bank = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).to(dtype)  # billions of draws take a minute
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            for part in weight.view(-1).split(len(bank)):
                part.copy_(bank[: len(part)]).mul_(1 / math.sqrt(weight[0].numel()))
    return _patcher(model)


def _in_one_place(module: torch.nn.Module) -> None:
    """Weights that lie on meta become views of one number each, which take no memory."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    one = torch.full((1,), 0.5, dtype=tensor.dtype).expand(tensor.shape)
                    tensors[name] = torch.nn.Parameter(one, requires_grad=False) if tensors is part._parameters else one


def _patcher(model: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def text(network: Network, tokens: int, seed: int) -> list:
    """A CONDITIONING with one random embedding [1, tokens, width] in fp32."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, tokens, network.width, generator=generator)
    pooled = torch.randn(1, network.pooled, generator=generator)
    return [[embedding, {"pooled_output": pooled, **network.options(tokens)}]]
