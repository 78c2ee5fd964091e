"""NASA in number formats, in little memory, in context windows, in stock sampling nodes, and in several models."""

import inspect
import random

import comfy.model_management
import comfy_extras.nodes_context_windows as context_windows
import comfy_extras.nodes_custom_sampler as custom_sampler
import companions
import pytest
import torch
from families import build, conditioning
from families import sample as sample_family
from truths import truth as family_truth


def check(actual, expected, plain, tolerance):
    """The difference as a part of what NASA changes."""
    effect = (expected - plain).abs().max()
    assert effect > 0.1
    assert (actual - expected).abs().max() < tolerance * effect, ((actual - expected).abs().max(), effect)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 100.0])
def test_weights_in_few_bits(pack, build_model, text, sample, truth, monkeypatch, dtype, share):
    """Stored so, computed in fp32: ComfyUI casts every weight when its layer runs, those of K- and V- too."""
    monkeypatch.setattr(pack.prompt, "SHARE", share)
    model, positive, negative = build_model("one level", dtype, torch.float32), text(1), text(2)
    plain = sample(model, positive, steps=2)
    with truth(model, negative[0][0], 0.4):
        expected = sample(model, positive, steps=2)
    check(sample(pack.payload.patch(model, negative, 0.4), positive, steps=2), expected, plain, 1e-3)


@pytest.mark.parametrize("lora", [None, "before", "after"])
@pytest.mark.parametrize("share", [0.0, 100.0])
def test_low_vram(pack, model, text, sample, truth, monkeypatch, lora, share):
    """Weights that stay off the device, with a LoRA applied when a layer runs."""
    monkeypatch.setattr(pack.prompt, "SHARE", share)
    positive, negative = text(1), text(2)

    def with_lora(model):
        return companions.lora(model, random.Random(1))

    def nasa(model):
        return pack.payload.patch(model, negative, 0.4)

    first, second = {None: (lambda m: m, nasa), "before": (with_lora, nasa), "after": (nasa, with_lora)}[lora]
    other = with_lora(model) if lora else model
    plain = sample(other, positive, steps=2)
    with truth(model, negative[0][0], 0.4):
        expected = sample(other, positive, steps=2)

    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    comfy.model_management.unload_all_models()
    attn = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    cast = []

    def watch(layer, *_):
        cast.append((layer.comfy_cast_weights, len(layer.weight_function)))

    handle = attn.to_k.register_forward_hook(watch)
    steered = sample(second(first(model)), positive, steps=2)
    handle.remove()
    assert cast and all(entry == (True, 1 if lora else 0) for entry in cast)
    check(steered, expected, plain, 1e-3)
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("masked", [False, True])
def test_context_windows(pack, masked):
    """A video in windows of two frames: each is steered as a whole, a mask on the negative in its place."""
    name = "Wan 2.1 T2V"
    model, positive, negative = build(name), conditioning(name, 1), conditioning(name, 2, tokens=9)

    def in_windows(model):
        schedule = context_windows.comfy.context_windows.ContextSchedules.STATIC_STANDARD
        node = context_windows.ContextWindowsManualNode.execute
        newer = {"freenoise": False} if "freenoise" in inspect.signature(node).parameters else {}
        return node(model, 2, 1, schedule, 1, False, "pyramid", 2, **newer).args[0]

    def sampled(model):
        return sample_family(name, model, positive, batch=1)  # ComfyUI 0.3.75 has windows for one video only

    windowed, calls = in_windows(model), []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[2]))
    with family_truth(name, model, negative):
        expected = sampled(windowed)
    handle.remove()
    assert 2 in calls
    plain = sampled(windowed)
    if masked:
        mask = torch.zeros(1, 8, 8)
        mask[:, :, :4] = 1.0
        whole = negative
        negative = [[negative[0][0], negative[0][1] | {"mask": mask, "mask_strength": 1.0}]]
    before = sampled(pack.payload.patch(windowed, negative, 0.4))
    after = sampled(in_windows(pack.payload.patch(model, negative, 0.4)))
    assert torch.equal(before, after)
    if masked:
        uncut = sampled(pack.payload.patch(windowed, whole, 0.4))
        assert (before - plain).abs().max() > 0.1 and (before - uncut).abs().max() > 0.1
    else:
        check(before, expected, plain, 1e-3)


def test_sampler_custom_advanced_and_noise_of_a_batch(pack, model, text, sample, truth):
    """Latent batches take noise by their batch_index: each picture is the same alone and among others."""
    positive, negative = text(1), text(2)
    patched = pack.payload.patch(model, negative, 0.4)
    guider = custom_sampler.BasicGuider.execute(patched, positive).args[0]
    sigmas = custom_sampler.BasicScheduler.execute(model, "simple", 2, 1.0).args[0]
    sampler = custom_sampler.KSamplerSelect.execute("euler").args[0]
    noise = custom_sampler.RandomNoise.execute(3).args[0]

    def run(guider, *indices):
        latent = {"samples": torch.zeros(len(indices), 4, 8, 8), "batch_index": list(indices)}
        with torch.inference_mode():
            return custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0][
                "samples"
            ]

    pictures = run(guider, 4, 0, 2)
    for index, picture in zip((4, 0, 2), pictures, strict=True):
        torch.testing.assert_close(run(guider, index)[0], picture, rtol=1e-4, atol=1e-3)
    plain = custom_sampler.BasicGuider.execute(model, positive).args[0]
    with truth(model, negative[0][0], 0.4):
        expected = run(plain, 4, 0, 2)
    check(pictures, expected, run(plain, 4, 0, 2), 1e-3)


def test_several_models_in_one_graph(pack, models, text, sample):
    """Each keeps its own negative, whoever sampled between."""
    widths = {name: models[name].model.model_config.unet_config["context_dim"] for name in ("SD 1.5", "SD 2.1", "SDXL")}
    patched = {name: pack.payload.patch(models[name], text(2, width=width), 0.4) for name, width in widths.items()}
    first = {name: sample(patched[name], text(1, width=widths[name])) for name in patched}
    for name in ("SDXL", "SD 1.5", "SD 2.1"):
        assert torch.equal(sample(patched[name], text(1, width=widths[name])), first[name])
        assert (sample(models[name], text(1, width=widths[name])) - first[name]).abs().max() > 0.05
