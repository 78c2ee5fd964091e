"""Every preset against its authors' own formula, through our sampler and through a stock KSampler.

Narrow models with random weights: this proves that each network gets the input, the timesteps and the formula its
authors wrote down. It says nothing about the quality of pictures.
"""

import json
from pathlib import Path

import comfy.k_diffusion.sampling
import comfy.sample
import pytest
import torch
import yaml

from presets.__main__ import BEGIN, END, FAMILIES, PAGE, by_family
from presets.authors import AUTHORS, OTHERWISE

PACK = Path(__file__).parents[3]
ROWS = yaml.safe_load((PACK / "nodes" / "sampling" / "presets.yaml").read_text(encoding="utf-8"))
RESULTS = PACK / "build" / "presets.json"
CASES = [(name, backbone) for name, row in ROWS.items() if name in AUTHORS for backbone in row["backbones"]]
SEED = 5


@pytest.fixture(scope="module")
def measured():
    """measured[preset, backbone] = errors; written to build/presets.json at the end."""
    results = {}
    yield results
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [{"preset": name, "backbone": backbone, **errors} for (name, backbone), errors in results.items()]
    RESULTS.write_text(json.dumps(rows, indent=1))


def error(latent, truth):
    """The largest deviation in units of the largest value; inf for anything that is no number."""
    latent, truth = latent.double(), truth.double()
    largest = (latent - truth).abs().max() / truth.abs().max()
    return float(largest) if torch.isfinite(latent).all() else float("inf")


def ksampler(model, preset, positive, latent, cfg=1.0, negative=None):
    import nodes

    steps, sampler = len(preset.timesteps), preset.sampler
    with torch.inference_mode():
        (out,) = nodes.common_ksampler(
            model, SEED, steps, cfg, sampler, "simple", positive, negative or positive, latent
        )
    return out["samples"]


def conditioning(model, seed):
    config = model.model.model_config.unet_config
    width = config.get("context_dim") or 32
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 1280 if "context_dim" in config else 32, generator=generator)
    text = torch.randn(1, 20, width, generator=generator)
    told = {"pooled_output": pooled, "conditioning_llama3": torch.randn(1, 2, 20, 32, generator=generator)}
    if config.get("image_model") in ("boogu", "ltxv"):
        told["attention_mask"] = torch.ones(1, 20, dtype=torch.long)
    return [[text, told]]


def network_of(model, positive, latent, run):
    """The model itself, network(x, t), with everything but x and t as one call of ComfyUI gives it."""
    recorded = {}

    def record(_, args, kwargs):
        recorded.update(args=args[2:], kwargs=kwargs)

    handle = model.model.diffusion_model.register_forward_pre_hook(record, with_kwargs=True)
    run(model, positive, latent, SEED)
    handle.remove()
    dims = len(latent["samples"].shape)

    def network(x, t):
        with torch.inference_mode():
            x = x.float()
            timestep = torch.full((x.shape[0],), float(t))
            shaped = x.unsqueeze(2) if model.model.latent_format.latent_dimensions == 3 and dims == 4 else x
            timestep = model.model.process_timestep(timestep, x=shaped)  # Mage-Flow's is rounded to bf16
            return model.model.diffusion_model(shaped, timestep, *recorded["args"], **recorded["kwargs"]).view_as(x)

    return network


@pytest.mark.parametrize("name, backbone", CASES)
def test_authors_formula(name, backbone, sampling, narrow_model, run, measured):
    model, preset = narrow_model(backbone), sampling.presets.find_preset(name)
    size = 40 if backbone == "PixArt" else 8  # PixArt divides by zero for smaller ones
    latent = {"samples": torch.zeros(2, model.model.latent_format.latent_channels, size, size)}
    positive = conditioning(model, 1)
    preset = sampling.schedule.for_size(preset, sampling.latent.pixels_of(model, latent))
    patched = sampling.one_step.with_preset(model, preset)
    scale, dimensions = model.model.latent_format.scale_factor, model.model.latent_format.latent_dimensions
    to_latent = patched.get_model_object("latent_format").process_out

    z = comfy.sample.prepare_noise(latent["samples"], SEED)
    next_noise = comfy.k_diffusion.sampling.default_noise_sampler(z, seed=SEED)
    network = network_of(model, positive, latent, lambda *args: run(*args, preset=name))
    truth = AUTHORS[name](network, z, lambda: next_noise(None, None))
    if preset.latent_scale is not None:
        assert scale == 0.13025  # stock detection takes PixArt-alpha for PixArt-sigma
        truth = truth / 0.18215
    else:
        truth = to_latent(truth.unsqueeze(2)).squeeze(2) if dimensions == 3 else to_latent(truth)

    out = run(model, positive, latent, SEED, preset=name)["samples"].view_as(truth)
    through_ksampler = ksampler(patched, preset, positive, latent).view_as(truth)
    stock = ksampler(model, preset, positive, latent).view_as(truth)
    measured[name, backbone] = errors = {
        "sampler": error(out, truth), "ksampler": error(through_ksampler, truth), "stock": error(stock, truth)
    }  # fmt: skip
    print(f"{name} on {backbone}: {errors}")
    assert errors["sampler"] < 1e-5
    if preset.gamma:  # no sampler of ComfyUI adds this noise: without it, it is
        truth = to_latent(AUTHORS["pcm-4step"](network, z, None))
        assert errors["ksampler"] > 1e-3 and error(through_ksampler, truth) < 1e-5
    else:
        assert errors["ksampler"] < 1e-5


def test_every_preset_has_its_formula(sampling):
    assert [name for name in ROWS if name not in OTHERWISE] == list(AUTHORS)
    assert list(ROWS) == list(sampling.presets.read_presets()) and set(OTHERWISE) <= set(ROWS)


#: Rows whose template is right, with the scheduler of its KSampler and the shift of its ModelSampling node, if any.
TEMPLATES = [
    ("z-image-turbo", "Z-Image", "simple", "AuraFlow", 3.0),
    ("qwen-image-turbo-2step", "Qwen-Image", "simple", "AuraFlow", 3.0),
    ("anima-turbo", "Anima", "simple", None, None), ("wan-animate2-distilled", "Wan", "simple", "SD3", 5.0),
    ("krea2-turbo", "Krea 2", "simple", None, None), ("ernie-image-turbo", "Ernie-Image", "simple", None, None),
    ("boogu-turbo", "Boogu", "sgm_uniform", None, None), ("mage-flow-turbo", "Mage-Flow", "simple", None, None),
    ("hidream-fast", "HiDream", "normal", "SD3", 3.0), ("hidream-dev", "HiDream", "normal", "SD3", 6.0),
]  # fmt: skip


@pytest.mark.parametrize("name, backbone, scheduler, kind, shift", TEMPLATES, ids=[case[0] for case in TEMPLATES])
def test_a_stock_ksampler_as_in_the_template(name, backbone, scheduler, kind, shift, sampling, narrow_model, run):
    """It and our sampler give the same picture."""
    import comfy_extras.nodes_model_advanced as advanced

    import nodes

    model, preset = narrow_model(backbone), sampling.presets.find_preset(name)
    latent = {"samples": torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)}
    positive = conditioning(model, 1)
    ours = run(model, positive, latent, SEED, preset=name)["samples"]
    if kind == "SD3":
        (model,) = advanced.ModelSamplingSD3().patch(model, shift)
    elif kind == "AuraFlow":
        (model,) = advanced.ModelSamplingAuraFlow().patch_aura(model, shift)
    with torch.inference_mode():
        stock = nodes.common_ksampler(
            model, SEED, len(preset.timesteps), 1.0, preset.sampler, scheduler, positive, positive, latent
        )[0]["samples"]
    assert error(ours, stock) < 1e-4


def test_page_lists_every_preset_by_family(sampling):
    """docs/presets.md, which `make presets` writes: whole, and as presets.yaml is; the words of errors are measured."""
    assert set(FAMILIES) == set(sampling.backbones.BACKBONES)
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line.rpartition("| ")[0] for line in written.splitlines()]
    assert lines == [line.rpartition("| ")[0] for line in by_family(ROWS, []).splitlines()]
    assert all(f"| `{name}` |" in written for name in ROWS)


@pytest.mark.parametrize("name, recipe", [("snoopi-shapes", "shapes"), ("snoopi-portraits", "portraits"),
                                          ("pg-sb-sd15", "sd15"), ("pg-sb-sd3", "sd35-medium")])  # fmt: skip
def test_a_student_of_a_shipped_recipe_starts_where_it_was_trained(name, recipe):
    trained = yaml.safe_load((PACK / "training" / "configs" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    assert ROWS[name]["timesteps"] == [trained["start"]["timestep"]]
    if "latent_size" in trained:
        assert ROWS[name]["resolution"] == 8 * trained["latent_size"][0]
