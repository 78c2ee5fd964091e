"""The one-step sampler against its formula, and against a stock KSampler."""

import random

import comfy.sample
import comfy.samplers
import companions
import latent_preview
import pytest
import torch


def ksampler(model, seed, positive, latent):
    import nodes

    with torch.inference_mode():
        (out,) = nodes.common_ksampler(model, seed, 1, 1.0, "euler", "simple", positive, positive, latent)
    return out


def network_inputs(model, received):
    return model.model.diffusion_model.register_forward_pre_hook(lambda _, args: received.append(args[:2]))


@pytest.mark.parametrize("preset, timestep, noise", [("sd", 999, "unit"), ("sid-lsg", 625, "vp")])
@pytest.mark.parametrize("family", ["SD 1.5", "SD 2.1"])
def test_formula(models, text, run, family, preset, timestep, noise):
    """x0 = (x_in - sigma_vp * eps(x_in, t)) / alpha_t, the schedule written out in fp64."""
    model = models[family]
    positive = text(1, width=model.model.model_config.unet_config["context_dim"])
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    acp = torch.cumprod(1 - betas, 0)[timestep]
    alpha_t, sigma_vp = acp.sqrt(), (1 - acp).sqrt()
    z = comfy.sample.prepare_noise(latent["samples"], 5)
    received, predicted = [], []
    handles = [
        network_inputs(model, received),
        model.model.diffusion_model.register_forward_hook(lambda *args: predicted.append(args[-1])),
    ]
    out = run(model, positive, latent, preset=preset)["samples"]
    for handle in handles:
        handle.remove()
    ((x_in, t),) = received
    expected_in = z.double() * (1.0 if noise == "unit" else sigma_vp)
    assert t.tolist() == [timestep] * 2
    torch.testing.assert_close(x_in.double(), expected_in, rtol=1e-5, atol=1e-6)
    x0 = (expected_in - sigma_vp * predicted[0].double()) / alpha_t
    x0 = x0 / model.model.latent_format.scale_factor
    torch.testing.assert_close(out.double(), x0, rtol=1e-5, atol=1e-5 * float(x0.abs().max()))


def mask_upper_half():
    mask = torch.zeros(1, 1, 8, 8)
    mask[:, :, :4] = 1
    return mask


@pytest.mark.parametrize(
    "latent",
    [
        {"samples": torch.zeros(3, 4, 8, 8)},
        {"samples": torch.zeros(2, 16, 8, 8)},
        {"samples": torch.zeros(2, 4, 8, 8), "batch_index": [3, 1]},
        {"samples": torch.full((1, 4, 8, 8), 0.5)},
        {"samples": torch.full((1, 4, 8, 8), 0.5), "noise_mask": mask_upper_half()},
    ],
    ids=["empty", "16 channels", "batch_index", "image", "inpaint"],
)
def test_sd_equals_a_stock_ksampler(model, text, run, latent):
    latent["kept"] = "as it is"
    out, stock = run(model, text(1), latent), ksampler(model, 5, text(1), latent)
    assert out.keys() == stock.keys() and out["kept"] == "as it is"
    torch.testing.assert_close(out["samples"], stock["samples"], rtol=1e-6, atol=1e-6)
    assert "samples" in latent and latent["samples"].abs().max() <= 0.5


def test_noise_is_the_ksamplers(model, text, run):
    received = []
    handle = network_inputs(model, received)
    latent = {"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 4]}
    run(model, text(1), latent, seed=11)
    ksampler(model, 11, text(1), latent)
    handle.remove()
    assert torch.equal(received[0][0], received[1][0]) and torch.equal(received[0][1], received[1][1])


def test_negative_is_the_patch(pack, model, text, run):
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    plain = run(model, text(1), latent)["samples"]
    assert torch.equal(run(model, text(1), latent, alpha=0.9)["samples"], plain)
    assert torch.equal(run(model, text(1), latent, negative=text(2), alpha=0.0)["samples"], plain)
    steered = run(model, text(1), latent, negative=text(2), alpha=0.4)["samples"]
    patched = pack.nasa_patch.NASACrossAttentionPatch.execute(model, text(2), 0.4, 0.0, 1.0).args[0]
    assert torch.equal(run(patched, text(1), latent)["samples"], steered)
    assert torch.equal(run(patched, text(1), latent, negative=text(3), alpha=0.4)["samples"],
                       run(model, text(1), latent, negative=text(3), alpha=0.4)["samples"])  # fmt: skip
    assert (steered - plain).abs().max() > 0.05


def test_a_preset_for_a_whole_model_holds_on_a_patched_model(pack, model, text, run):
    """Whatever ModelSampling patch the model carries, the preset's own prediction, timestep and noise are used."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    (patched,) = ModelSamplingDiscrete().patch(model, "v_prediction", True)
    for preset in ("dmd2-sd15", "snoopi-shapes", "instaflow"):
        assert torch.equal(run(patched, text(1), latent, preset=preset)["samples"],
                           run(model, text(1), latent, preset=preset)["samples"])  # fmt: skip
    with torch.inference_mode():
        told = pack.one_step_sampler.SNOOPIOneStepSampler.execute(patched, text(1), latent, 1, "dmd2-sd15").args[1]
    assert "The ModelSampling node before it is put aside: the file fixes what it predicts." in told


@pytest.mark.parametrize("preset", ["sd", "sid-lsg", "instaflow", "hyper-sd-1step-lora", "yoso-sd15-2step", "lcm"])
def test_a_controlnet_sees_what_the_network_sees(models, text, run, preset):
    """The same noisy latent and timestep in every step, whatever noise and timesteps the preset has."""
    model, received, asked = models["SD 1.5"], [], []
    controlled = companions.control_net(model)(text(1), random.Random(0))
    control = controlled[0][1]["control"].set_cond_hint(torch.rand(1, 3, 64, 64), 1.0, (0.0, 1.0))
    control.control_model.register_forward_pre_hook(
        lambda _, args, named: asked.append((named["x"], named["timesteps"])), with_kwargs=True
    )
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    handle = network_inputs(model, received)
    out = run(model, controlled, latent, preset=preset)["samples"]
    handle.remove()
    plain = run(model, text(1), latent, preset=preset)["samples"]
    assert len(asked) == len(received) > 0 and (out - plain).abs().max() > 1e-3
    for seen, own in zip(asked, received, strict=True):
        assert all(torch.equal(*pair) for pair in zip(seen, own, strict=True))


def test_progress_and_cancel(pack, model, text, run, monkeypatch):
    import comfy.model_management

    seen = []
    monkeypatch.setattr(latent_preview, "prepare_callback", lambda model, steps: lambda *args: seen.append(args))
    out = run(model, text(1), {"samples": torch.zeros(1, 4, 8, 8)})["samples"]
    ((step, x0, _, total),) = seen
    assert (step, total) == (0, 1)
    torch.testing.assert_close(x0 / model.model.latent_format.scale_factor, out, rtol=1e-5, atol=1e-4)
    comfy.model_management.interrupt_current_processing(True)
    interrupt = comfy.model_management.InterruptProcessingException
    monkeypatch.setattr(
        latent_preview, "prepare_callback",
        lambda *_: lambda *_: comfy.model_management.throw_exception_if_processing_interrupted(),
    )  # fmt: skip
    with pytest.raises(interrupt):
        run(model, text(1), {"samples": torch.zeros(1, 4, 8, 8)}, negative=text(2), alpha=0.4)


def test_model_stays_unpatched(model, text, run):
    sampling = model.get_model_object("model_sampling")
    run(model, text(1), {"samples": torch.zeros(1, 4, 8, 8)}, preset="snoopi-shapes")
    assert model.get_model_object("model_sampling") is sampling and not model.object_patches


def one_step_ksampler(model, preset_model, positive, negative, latent, seed=5):
    import nodes

    with torch.inference_mode():
        (out,) = nodes.common_ksampler(preset_model, seed, 1, 1.0, "euler", "simple", positive, negative, latent)
    return out["samples"]


def sag(model):
    return companions.core(companions.sag.SelfAttentionGuidance, model, 0.5, 2.0)


def reads_uncond(model):
    """A patch of another pack: half of the way from the unconditional."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(
        lambda args: args["denoised"] + 0.5 * (args["denoised"] - args["uncond_denoised"]),
        disable_cfg1_optimization=True,
    )
    return model


def cfg_override(model, cfg=2.0):
    """The core's CFG Override, which older cores lack."""
    import comfy_extras.nodes_custom_sampler as samplers
    from comfy.patcher_extension import WrappersMP

    if hasattr(samplers, "CFGOverride"):
        return samplers.CFGOverride.execute(model, cfg, 0.0, 1.0).args[0]
    model = model.clone()

    def override(executor, *args, **kwargs):
        guider = executor.class_obj
        before, guider.cfg = guider.cfg, cfg
        try:
            return executor(*args, **kwargs)
        finally:
            guider.cfg = before

    model.add_wrapper(WrappersMP.PREDICT_NOISE, override)
    return model


@pytest.mark.parametrize("nasa_too", [False, True])
@pytest.mark.parametrize("patch", [sag, reads_uncond, cfg_override])
def test_nodes_that_read_the_uncond_get_what_a_ksampler_gives(pack, model, text, run, patch, nasa_too):
    """The same negative, the same picture, at CFG 1."""
    latent, negative = {"samples": torch.zeros(2, 4, 16, 16)}, text(2)
    patched = patch(model)
    out = run(patched, text(1), latent, negative=negative, alpha=0.4 if nasa_too else 0.0)["samples"]
    stock = pack.nasa_patch.NASACrossAttentionPatch.execute(patched, negative, 0.4, 0.0, 1.0).args[0]
    expected = one_step_ksampler(model, stock if nasa_too else patched, text(1), negative, latent)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    assert (out - run(model, text(1), latent)["samples"]).abs().max() > 0.05


@pytest.mark.parametrize("patch", [sag, reads_uncond, cfg_override])
def test_nodes_that_read_the_uncond_without_a_negative(pack, model, text, run, patch):
    """They get the positive: the picture stays, where it was doubled, and SAG finds something to read."""
    latent = {"samples": torch.zeros(2, 4, 16, 16)}
    out = run(patch(model), text(1), latent)["samples"]
    if patch is sag:
        expected = one_step_ksampler(model, patch(model), text(1), text(1), latent)
    else:
        expected = run(model, text(1), latent)["samples"]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)
    steered = pack.nasa_patch.NASACrossAttentionPatch.execute(model, text(2), 0.4, 0.0, 1.0).args[0]
    if patch is not sag:
        both = run(patch(steered), text(1), latent)["samples"]
        torch.testing.assert_close(both, run(steered, text(1), latent)["samples"], rtol=1e-4, atol=1e-3)


def test_the_node_says_what_stands_in_for_the_negative(pack, model, text):
    execute, latent = pack.one_step_sampler.SNOOPIOneStepSampler.execute, {"samples": torch.zeros(1, 4, 16, 16)}
    said = "No negative is connected: patches of the model that want one get the positive."
    with torch.inference_mode():
        assert said in execute(sag(model), text(1), latent, 1, "sd").args[1]
        assert said not in execute(sag(model), text(1), latent, 1, "sd", text(2)).args[1]
        assert said not in execute(model, text(1), latent, 1, "sd").args[1]


def test_no_second_pass_where_nobody_reads_the_uncond(model, text, run, calls):
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    for inputs in ({}, {"negative": text(2), "alpha": 0.4}, {"negative": text(2), "alpha": 0.0}):
        with calls(model) as sizes:
            run(model, text(1), latent, preset="lcm", **inputs)
        assert sizes == [2] * 4
    with calls(model) as sizes:
        run(reads_uncond(model), text(1), latent, preset="lcm", negative=text(2))
    assert sizes == [4] * 4
