"""The patch against an independent reference: diffusers with training/networks/nasa.py, on the same weights, to 1e-4.

Each family has its full layout, as ComfyUI reads it off the full-width network: levels, blocks, transformer depths and
the real number of heads. Only the channels are fewer, and the weights are random, so this proves wiring and arithmetic,
not quality. Latents are compared by max |ComfyUI - diffusers| / max |diffusers|.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import comfy.model_detection
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import comfy.utils
import pytest
import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel

from training.networks.nasa import add_nasa, nasa_arguments

BATCH, ALPHA, TOLERANCE = 2, 0.5, 1e-4
WIDTH = 48  # of the text
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PIXART = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}


@dataclass
class Family:
    """network(**full) is the published one in diffusers; `narrow` there and `comfy` in ComfyUI make it less wide."""

    name: str
    config_class: str
    network: type
    full: dict[str, Any]
    narrow: dict[str, Any]
    comfy: dict[str, Any]
    schedule: dict[str, Any]
    timestep: int
    latent_scale: float
    gain: float = 1.5  # of the random weights: enough that attention looks at some tokens more than at others
    size: tuple[int, int] = (16, 24)  # of the latents
    options: dict[str, Any] = field(default_factory=dict)  # of the conditioning
    tokens: tuple[int, int] = (77, 154)  # of the positive, of the negative


FAMILIES = [
    Family(
        name="SD 1.5",
        config_class="SD15",
        network=UNet2DConditionModel,
        full={"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768},
        narrow={"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": WIDTH},
        comfy={"model_channels": 64, "context_dim": WIDTH},
        schedule=SD,
        timestep=999,
        latent_scale=0.18215,
    ),
    Family(
        name="SD 2.1",
        config_class="SD20",
        network=UNet2DConditionModel,
        full={
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": (5, 10, 20, 20),  # which diffusers means as the number of heads
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        # 5 heads in a multiple of group norm's 32 groups: 160 channels are the fewest
        narrow={"block_out_channels": (160, 320, 640, 640), "cross_attention_dim": WIDTH},
        comfy={"model_channels": 160, "context_dim": WIDTH, "num_head_channels": 32},
        schedule=SD,
        timestep=625,
        latent_scale=0.18215,
    ),
    Family(
        name="SDXL",
        config_class="SDXL",
        network=UNet2DConditionModel,
        full={
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        narrow={"block_out_channels": (160, 320, 640), "cross_attention_dim": WIDTH},
        comfy={"model_channels": 160, "context_dim": WIDTH, "num_head_channels": 32},
        schedule=SD,
        timestep=999,
        latent_scale=0.13025,
        options={"height": 512, "width": 768, "crop_h": 8, "crop_w": 24, "target_height": 640, "target_width": 896},
    ),
    Family(
        name="PixArt-alpha",
        config_class="PixArtAlpha",
        network=PixArtTransformer2DModel,
        full={"caption_channels": 4096},  # diffusers' defaults are the 1024 px model: 16 heads, 28 layers
        narrow={
            "attention_head_dim": 6,
            "cross_attention_dim": 96,
            "caption_channels": WIDTH,
            "sample_size": 64,  # positions as at 512 px, the least that ComfyUI takes; the size conditions stay
            "use_additional_conditions": True,
        },
        comfy={"hidden_size": 96, "caption_channels": WIDTH},
        schedule=PIXART,
        timestep=400,
        latent_scale=0.18215,
        size=(24, 48),
        gain=1.0,  # at 1.5 attention picks one token, and 28 layers make rounding visible: plain calls differ by 0.03
        tokens=(120, 20),
    ),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_one_step_latents(pack, family):
    network = _random_network(family)
    model = _comfyui_model(family, network)
    z, positive, pooled = (_randn(BATCH, *shape) for shape in ((4, *family.size), (family.tokens[0], WIDTH), (1280,)))
    negative = _randn(1, family.tokens[1], WIDTH)
    texts = [[positive, {"pooled_output": pooled, **family.options}]]
    patched = pack.payload.patch(model, [[negative, {"pooled_output": pooled[:1]}]], ALPHA)
    with torch.inference_mode():
        plain = _diffusers_one_step(family, network, z, positive, pooled)
        add_nasa(network)
        steer = nasa_arguments(network, negative, ALPHA)
        steered = _diffusers_one_step(family, network, z, positive, pooled, **steer)
        assert _difference(_comfyui_one_step(family, model, z, texts), plain) < TOLERANCE
        assert _difference(_comfyui_one_step(family, patched, z, texts), steered) < TOLERANCE
    assert _difference(steered, plain) > 1000 * TOLERANCE


def _randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def _difference(ours, reference):
    """max |ours - reference| / max |reference|."""
    assert torch.isfinite(reference).all()
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def _random_network(family):
    network = family.network(**family.full | family.narrow).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        scale = 0.1 if parameter.ndim == 1 else family.gain / parameter[0].numel() ** 0.5
        parameter.normal_(0, scale, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1)
    return network


def _comfyui_model(family, network):
    """The same tensors under ComfyUI's names, in the layout that ComfyUI detects in the full-width network."""
    with torch.device("meta"):
        full = family.network(**family.full).state_dict()
    if family.network is PixArtTransformer2DModel:
        layout = comfy.model_detection.detect_unet_config(comfy.model_detection.convert_diffusers_mmdit(full), "")
        names = comfy.utils.pixart_to_diffusers(layout | family.comfy)
    else:
        layout = comfy.model_detection.unet_config_from_diffusers_unet(full)
        names = comfy.utils.unet_to_diffusers(layout)
    config = comfy.model_detection.model_config_from_unet_config(layout)
    assert type(config).__name__ == family.config_class
    config.unet_config.update(family.comfy)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    missing, unexpected = model.diffusion_model.load_state_dict(
        _renamed(network.state_dict(), names), strict=False, assign=True
    )
    assert not unexpected and set(missing) <= {"y_embedder.y_embedding"}  # the null prompt, only for training
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.requires_grad_(False), load_device=cpu, offload_device=cpu)


def _renamed(weights, names):
    """names: ComfyUI's {diffusers: name} or {diffusers: (name, (0, first row, rows))} for parts of one tensor."""
    whole, parts = {}, {}
    for key, weight in weights.items():
        if isinstance(names[key], str):
            whole[names[key]] = weight
        else:
            name, (_, row, _) = names[key]
            parts.setdefault(name, {})[row] = weight
    return whole | {name: torch.cat([rows[row] for row in sorted(rows)]) for name, rows in parts.items()}


def _comfyui_one_step(family, model, z, positive):
    """Stock sampling: CFGGuider at scale 1, euler, from sigma_t to 0. [BATCH, 4, height, width]"""
    sigma = model.get_model_object("model_sampling").sigmas[family.timestep]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    sigmas = torch.stack([sigma, torch.zeros_like(sigma)])
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(z, torch.zeros_like(z), sampler, sigmas, disable_pbar=True, seed=0)


def _diffusers_one_step(family, network, z, text, pooled, **steer):
    """x0 = (x - sigma_t eps(x, t)) / alpha_t, unscaled; x = sigma_t z, or z at the last timestep, as ComfyUI has it."""
    acp = DDIMScheduler(**family.schedule).alphas_cumprod.double()[family.timestep].item()
    alpha, sigma = acp**0.5, (1 - acp) ** 0.5
    x = z if family.timestep == 999 else sigma * z
    rows = functools.partial(torch.tensor, dtype=torch.float32)
    if family.network is PixArtTransformer2DModel:
        height, width = (8 * side for side in family.size)
        added = {"resolution": rows([[height, width]] * BATCH), "aspect_ratio": rows([[height / width]] * BATCH)}
    else:
        added = {"text_embeds": pooled, "time_ids": rows([list(family.options.values())] * BATCH)}
    eps = network(x, encoder_hidden_states=text, timestep=torch.full((BATCH,), family.timestep),
                  added_cond_kwargs=added, return_dict=False, **steer)[0][:, :4]  # fmt: skip
    return (x - sigma * eps) / alpha / family.latent_scale
