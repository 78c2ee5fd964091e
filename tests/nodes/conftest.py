"""A real ComfyUI in this process, on the CPU; the pack, loaded as ComfyUI loads it; narrow models, random weights."""

# ruff: noqa: E402

import gc
import importlib.util
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from left_alone import assert_clean
from plain_attention import plain_attention

PACK = Path(__file__).parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or PACK / "build" / "comfyui")

sys.path.insert(0, str(COMFYUI))
import comfy.options

comfy.options.enable_args_parsing()
argv, sys.argv = sys.argv, ["pytest", "--cpu", "--base-directory", tempfile.mkdtemp()]
import comfy.cli_args

sys.argv = argv

import comfy.model_patcher
import comfy.samplers
import comfy.supported_models

torch.set_num_threads(1)

NARROW = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "use_spatial_transformer": True, "legacy": False, "dtype": torch.float32,
}  # fmt: skip
FAMILIES = {
    "SD 1.5": ("SD15", {"context_dim": 24, "use_linear_in_transformer": False}),
    "one level": ("SD15", {"context_dim": 24, "channel_mult": [1], "num_res_blocks": [0], "transformer_depth": [],
                           "transformer_depth_output": [1], "use_linear_in_transformer": False}),
    "SD 2.1": ("SD20", {"context_dim": 32, "model_channels": 64, "use_linear_in_transformer": True}),
    "SDXL": (
        "SDXL",
        {
            "context_dim": 40, "model_channels": 64, "use_linear_in_transformer": True,
            "num_classes": "sequential", "adm_in_channels": 2816,
            "transformer_depth": [0, 2], "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 2, 2],
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def pack():
    """The pack's modules by name under nodes/, loaded as in ComfyUI's nodes.load_custom_node."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    modules = {
        "root": "",
        "nodes": ".nodes",
        "schema": ".nodes.schema",
        "payload": ".nodes.guidance.payload",
        "layouts": ".nodes.guidance.layouts",
        "unet": ".nodes.guidance.layouts.unet",
        "rules": ".nodes.guidance.rules",
        "attention": ".nodes.guidance.attention",
        "blocks": ".nodes.guidance.blocks",
        "prompt": ".nodes.guidance.prompt",
        "kept": ".nodes.guidance.kept",
        "regions": ".nodes.guidance.regions",
        "conditioning": ".nodes.guidance.conditioning",
        "grid": ".nodes.guidance.layouts.grid",
        "presets": ".nodes.sampling.presets",
        "one_step": ".nodes.sampling.one_step",
        "nasa_patch": ".nodes.nasa_patch",
        "alpha_sweep": ".nodes.alpha_sweep",
        "attention_map": ".nodes.attention_map",
        "look": ".nodes.map.look",
        "word": ".nodes.map.word",
        "overlay": ".nodes.map.overlay",
        "sheet": ".nodes.sweep.sheet",
        "one_step_sampler": ".nodes.one_step_sampler",
    }
    return SimpleNamespace(**{short: importlib.import_module(name + path) for short, path in modules.items()})


def build(family, dtype=torch.float32, cast=None):
    """A model of random weights in `dtype`, computing in `cast` or else in `dtype`."""
    config_class, config = FAMILIES[family]
    config = getattr(comfy.supported_models, config_class)({**NARROW, **config, "dtype": dtype})
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.1 if parameter.ndim == 1 else 1.5 / parameter[0].numel() ** 0.5
        noise = noise * scale + (1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0)
        parameter.data = noise.to(parameter.dtype)
    model.requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


@pytest.fixture(scope="session")
def models():
    return {family: build(family) for family in FAMILIES}


@pytest.fixture(scope="module", autouse=True)
def quick_collection(models):
    """ComfyUI collects garbage at every load of a model; with all that tests hold, that takes a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def aura_flow():
    """A narrow model with joint attention, which no preset is for either."""
    config = comfy.supported_models.AuraFlow(
        {"in_channels": 4, "out_channels": 4, "dim": 32, "n_layers": 2, "n_double_layers": 1, "n_heads": 2,
         "global_conddim": 32, "cond_seq_dim": 24, "dtype": torch.float32}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model({}, "", device="cpu"), cpu, cpu)


@pytest.fixture
def build_model():
    return build


@pytest.fixture
def model(models):
    """A narrow SD 1.5, whose weights and modules must be the same after every test."""
    model = models["SD 1.5"]
    network = model.model.diffusion_model
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    yield model
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert_clean(model)


@pytest.fixture
def text(model):
    """text(seed, tokens=77, batch=1, width=24) -> CONDITIONING"""

    def text(seed, tokens=77, batch=1, width=24, **options):
        generator = torch.Generator().manual_seed(seed)
        options = {"pooled_output": torch.randn(batch, 1280, generator=generator), **options}
        return [[torch.randn(batch, tokens, width, generator=generator), options]]

    return text


@pytest.fixture
def sample():
    """sample(guider_or_model, positive=None, ...) -> samples; a model is run by a CFGGuider."""

    def sample(guider, positive=None, negative=None, cfg=1.0, steps=1, batch=1, seed=7, callback=None, size=8):
        if isinstance(guider, comfy.model_patcher.ModelPatcher):
            patcher, guider = guider, comfy.samplers.CFGGuider(guider)
            guider.set_conds(positive, negative or positive)
            guider.set_cfg(cfg)
        patcher = guider.model_patcher
        latent = torch.zeros(batch, 4, size, size)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise, latent, sampler, sigmas, callback=callback, disable_pbar=True, seed=seed)

    return sample


@pytest.fixture
def truth():
    """truth(model, context, alpha): NASA by forward hooks on the raw modules, for every row of every call."""

    @contextmanager
    def truth(model, context, alpha):
        queries = {}

        def remember(module, _, q):
            queries[module] = q

        def steer(attn):
            def before_output(_, args):
                (z,) = args
                q = queries[attn.to_q]
                k, v = attn.to_k(context), attn.to_v(context)
                rows = [part.expand(q.shape[0], -1, -1) for part in (k, v)]
                return (z - alpha * plain_attention(q, *rows, attn.heads),)

            return before_output

        with ExitStack() as stack:
            found = [m for name, m in model.model.named_modules() if name.endswith(".attn2")]
            assert found
            for attn in found:
                stack.callback(attn.to_q.register_forward_hook(remember).remove)
                stack.callback(attn.to_out.register_forward_pre_hook(steer(attn)).remove)
            yield

    return truth


@pytest.fixture
def calls():
    """calls(model): the batch sizes of the network's calls meanwhile."""

    @contextmanager
    def calls(model):
        sizes = []
        handle = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
        try:
            yield sizes
        finally:
            handle.remove()

    return calls
