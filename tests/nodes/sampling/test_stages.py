"""Models that take turns, second passes, and lists that depend on the size of the picture or the number of steps."""

import math

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

import nodes
from presets.authors import flow, flux_mu
from presets.authors import lcm as lcm_formula

HIGH, LOW = "wan22-lightx2v-high-noise", "wan22-lightx2v-low-noise"
EMPTY = {"samples": torch.zeros(1, 16, 1, 8, 8)}


def text(width=32, seed=1, **told):
    told = {"pooled_output": torch.zeros(1, 32)} | told
    return [[torch.randn(1, 9, width, generator=torch.Generator().manual_seed(seed)), told]]


@pytest.fixture
def wan(narrow_model):
    return narrow_model("Wan")


def network_of(model, positive, latent, run, preset):
    """The model itself, network(x, t), with what one call of ComfyUI gives it beside these."""
    recorded = {}
    handle = model.model.diffusion_model.register_forward_pre_hook(
        lambda _, args, kwargs: recorded.update(args=args[2:], kwargs=kwargs), with_kwargs=True
    )
    run(model, positive, latent, preset=preset)
    handle.remove()

    def network(x, t):
        with torch.inference_mode():
            return model.model.diffusion_model(
                x.float(), torch.full((x.shape[0],), float(t)), *recorded["args"], **recorded["kwargs"]
            )

    return network


def close(one, other, tolerance=1e-5):
    assert float((one - other).abs().max() / other.abs().max()) < tolerance


def by_authors(wan, run, sigmas=4):
    network = network_of(wan, text(), EMPTY, run, "wan21-lightx2v")
    z = comfy.sample.prepare_noise(EMPTY["samples"], 5)
    truth = flow(np.linspace(1.0, 1 / sigmas, sigmas), unit=1000, shift=5.0)(network, z, None)
    return wan.model.latent_format.process_out(truth)


def test_two_stages_are_the_four_steps_of_the_authors(wan, run):
    """High noise, then low noise: with one model for both, what its scheduler gives in four steps."""
    half = run_latent(run, wan, EMPTY, HIGH)
    assert half["snoopi_left_noisy_by"] == HIGH
    whole = run_latent(run, wan, half, LOW, seed=77)  # no noise is drawn for it
    assert "snoopi_left_noisy_by" not in whole
    close(whole["samples"], by_authors(wan, run))


def run_latent(run, model, latent, preset, seed=5):
    return run(model, text(), latent, seed=seed, preset=preset)


def test_two_stages_through_model_sampling_and_ksampler_advanced(sampling, wan, run):
    latent = EMPTY
    for preset, start, end, noise, leftover in ((HIGH, 0, 2, "enable", "enable"), (LOW, 2, 4, "disable", "disable")):
        patched, told = sampling.model_sampling_node.SNOOPIModelSampling.execute(wan, preset).args
        assert f"starts at step {start} and ends at step {end}" in told and "Set the KSampler to 4 steps" in told
        with torch.inference_mode():
            (latent,) = nodes.KSamplerAdvanced().sample(
                patched, noise, 5, 4, 1.0, "euler", "simple", text(), text(), latent, start, end, leftover
            )
    close(latent["samples"], by_authors(wan, run))


def test_scheduler_gives_each_stage_its_sigmas(sampling, wan):
    node = sampling.scheduler_node.SNOOPIOneStepScheduler
    expected = {HIGH: [1, 0.9375, 5 / 6], LOW: [5 / 6, 0.625, 0]}
    for preset, sigmas in expected.items():
        assert node.execute(wan, preset).args[0].tolist() == pytest.approx(sigmas, abs=1e-6)
    assert node.execute(wan, HIGH, steps=8).args[0].tolist() == pytest.approx(
        [5 * t / (1 + 4 * t) for t in (1, 0.875, 0.75, 0.625, 0.5)], abs=1e-6
    )


def test_a_two_stage_preset_with_one_model(wan, run):
    """The second stage from an empty latent, and anything but it from a noisy one: one sentence each."""
    with pytest.raises(ValueError, match=f"^The preset {LOW} goes on from a latent that the first model left noisy"):
        run_latent(run, wan, EMPTY, LOW)
    half = run_latent(run, wan, EMPTY, HIGH)
    with pytest.raises(ValueError, match=f"^The latent_image was left noisy by the preset {HIGH}"):
        run_latent(run, wan, half, "wan21-lightx2v")
    with pytest.raises(ValueError, match="one of two stages"):
        run(wan, text(), EMPTY, preset=HIGH, denoise=0.5)


@pytest.mark.parametrize("high, low", [
    ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise"),
    ("Wan_2_2_I2V_A14B_HIGH_lightx2v_4step_lora_rank_64", "Wan_2_2_I2V_A14B_LOW_lightx2v_4step_lora_rank_64"),
    ("Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "Wan2.2-Lightning_T2V-A14B-4steps-lora_LOW_fp16"),
])  # fmt: skip
def test_auto_knows_the_stage_by_the_lora(sampling, wan, high, low):
    for name, preset in ((high, HIGH), (low, LOW)):
        assert choice_of(sampling, wan, name).preset.name == preset


def test_auto_knows_the_stage_of_a_lora_for_both_by_the_model(sampling, wan):
    lora = "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16"
    for base, preset in (("wan2.2_t2v_high_noise_14B", HIGH), ("wan2.2_t2v_low_noise_14B", LOW), ("x", None)):
        choice = choice_of(sampling, wan, lora, base)
        assert choice.preset.name == (preset or "wan21-lightx2v")


def choice_of(sampling, model, lora, base="wan2.2_t2v_low_noise_14B", strength=1.0):
    file = sampling.files.ModelFile
    origin = sampling.origin.Origin((file(f"{base}.safetensors"),), (file(f"{lora}.safetensors", strength=strength),))
    return sampling.detect.choose(model, "auto", origin)


@pytest.mark.parametrize("preset, sigmas", [("ltx2-distilled-second-pass", [0.909375, 0.725, 0.421875]),
                                            ("ltx23-distilled-second-pass", [0.85, 0.725, 0.4219])])  # fmt: skip
def test_second_pass_starts_from_the_picture(narrow_model, run, preset, sigmas):
    """The latent with noise at the first sigma, then FlowMatchEulerDiscreteScheduler down the list."""
    model, image = narrow_model("LTX"), torch.linspace(-2, 2, 128 * 16).view(1, 128, 1, 4, 4)
    positive = text(attention_mask=torch.ones(1, 9, dtype=torch.long))
    network = network_of(model, positive, {"samples": image}, run, preset)
    z = comfy.sample.prepare_noise(image, 5)
    x = sigmas[0] * z + (1 - sigmas[0]) * model.model.latent_format.process_in(image)
    truth = flow(sigmas)(network, x, None)
    out = run(model, positive, {"samples": image}, preset=preset)["samples"]
    close(out, model.model.latent_format.process_out(truth))


def scheduler_sigmas(count, mu):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count), mu=mu)
    return scheduler.sigmas.tolist()


@pytest.mark.parametrize("width, height", [(1024, 1024), (512, 512), (832, 1248), (1536, 1024), (2048, 2048)])
@pytest.mark.parametrize("preset, count", [("flux2-klein", 4), ("flux2-dev-turbo", 8)])
def test_flux2_at_any_size(sampling, narrow_model, preset, count, width, height):
    """The sigmas of Flux2KleinPipeline, and of ComfyUI's Flux2Scheduler, for the size of the latent."""
    model, latent = narrow_model("FLUX.2"), {"samples": torch.zeros(1, 128, height // 16, width // 16)}
    node = sampling.scheduler_node.SNOOPIOneStepScheduler
    sigmas = node.execute(model, preset, latent_image=latent).args[0].tolist()
    mu = compute_empirical_mu(width * height // 256, count)
    assert sigmas == pytest.approx(scheduler_sigmas(count, mu), abs=1e-6)
    nodes_flux = pytest.importorskip("comfy_extras.nodes_flux")
    assert sigmas == pytest.approx(nodes_flux.get_schedule(count, width * height // 256).tolist(), abs=1e-6)
    patched = sampling.model_sampling_node.SNOOPIModelSampling.execute(model, preset, latent).args[0]
    listed = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", count)
    assert listed.tolist() == pytest.approx(sigmas, abs=1e-6)


def test_flux2_sampler_takes_the_size_of_its_latent(pack, sampling, narrow_model):
    model = narrow_model("FLUX.2")
    node, latent = pack.one_step_sampler.SNOOPIOneStepSampler, {"samples": torch.zeros(1, 128, 8, 4)}
    with torch.inference_mode():
        told = node.execute(model, text(), latent, 1, "flux2-klein").args[1]
    timesteps = [1000 * sigma for sigma in scheduler_sigmas(4, compute_empirical_mu(32, 4))[:-1]]
    assert "timesteps " + ", ".join(f"{timestep:g}" for timestep in timesteps) in told


@pytest.mark.parametrize("preset, backbone", [("flux-dev-turbo", "FLUX.1"), ("flux-dev-hyper", "FLUX.1")])
def test_flux1_dev_at_any_size(sampling, narrow_model, preset, backbone):
    latent = {"samples": torch.zeros(1, 16, 64, 96)}
    sigmas = sampling.scheduler_node.SNOOPIOneStepScheduler.execute(narrow_model(backbone), preset, latent_image=latent)
    assert sigmas.args[0].tolist() == pytest.approx(scheduler_sigmas(8, flux_mu(512 * 768)), abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8, 12])
def test_steps_are_those_of_the_authors_schedulers(sampling, count):
    """Trailing, LCM's own, shifted, and shifted by size: what diffusers gives for as many steps."""
    from diffusers import EulerDiscreteScheduler, LCMScheduler

    def listed(name):
        return list(sampling.schedule.with_steps(sampling.presets.find_preset(name), count).timesteps)

    euler = EulerDiscreteScheduler(timestep_spacing="trailing")
    euler.set_timesteps(count)
    assert listed("sdxl-lightning-4step") == listed("hyper-sd-8step") == euler.timesteps.tolist()
    lcm = LCMScheduler()
    lcm.set_timesteps(count)
    assert listed("lcm") == listed("tcd") == lcm.timesteps.tolist()
    for name, mu in (("z-image-turbo", math.log(3)), ("wan21-lightx2v", math.log(5)), ("krea2-turbo", 1.15),
                     ("flux2-klein", compute_empirical_mu(4096, count)), ("flux-dev-turbo", 1.15)):  # fmt: skip
        expected = [1000 * sigma for sigma in scheduler_sigmas(count, mu)[:-1]]
        assert listed(name) == pytest.approx(expected, abs=1e-3), name


def test_steps_of_every_preset(sampling):
    """As many as were asked for, falling, from the same start; 0 and its own number leave it as it is."""
    for preset in sampling.presets.read_presets().values():
        own = len(preset.timesteps)
        assert sampling.schedule.with_steps(preset, 0) == sampling.schedule.with_steps(preset, own) == preset
        for count in {2, 4, 7, 50} - {own}:
            other = sampling.schedule.with_steps(preset, count)
            assert len(other.timesteps) == count and other.timesteps[0] == pytest.approx(preset.timesteps[0])


def test_a_shift_gives_the_list(sampling):
    """Where a row names a shift, its list is what that shift gives for as many steps at its resolution."""
    for preset in sampling.presets.read_presets().values():
        if preset.shift is not None:
            own = len(preset.timesteps)
            again = sampling.schedule._shifted(preset.shift, own, sampling.schedule._pixels(preset))
            assert preset.timesteps == pytest.approx(again, abs=1e-6), preset.name


def test_steps_through_the_sampler(narrow_model, model, run):
    """Another number of steps of LCM is LCMScheduler's own list and fresh noise."""
    import comfy.k_diffusion.sampling

    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    positive = [[torch.randn(1, 9, model.model.model_config.unet_config["context_dim"]), {}]]
    network = network_of(model, positive, latent, run, "lcm")
    z = comfy.sample.prepare_noise(latent["samples"], 5)
    following = comfy.k_diffusion.sampling.default_noise_sampler(z, seed=5)
    truth = lcm_formula(8)(network, z, lambda: following(None, None))
    out = run(model, positive, latent, preset="lcm", steps=8)["samples"]
    close(out, model.model.latent_format.process_out(truth), 5e-5)  # over 8 steps of fp32


@pytest.mark.parametrize("steps", [-1, 51, 2.5, "four", None])
def test_steps_that_make_no_sense(model, run, steps):
    with pytest.raises(ValueError, match="^steps is "):
        run(model, [[torch.randn(1, 9, 24), {}]], {"samples": torch.zeros(1, 4, 8, 8)}, preset="lcm", steps=steps)


@pytest.mark.parametrize("preset, count", [("minimax-h3-turbo", 8), ("minimax-h3-turbo-4step", 4)])
def test_minimax_h3_has_its_own_sound(sampling, narrow_model, preset, count):
    """Its network reads both shifts and the scale of the sound off the schedule; the steps are the template's."""
    if not hasattr(comfy.supported_models, "MiniMaxH3"):
        pytest.skip("this ComfyUI has no MiniMaxH3")

    class Config:
        sampling_settings = comfy.supported_models.MiniMaxH3.sampling_settings

    core = comfy.model_sampling.ModelSamplingAV(Config)
    row = sampling.presets.find_preset(preset)
    ours = sampling.parameterization.PREDICTIONS[row.prediction](row, core, 1000)
    assert (ours.shift, ours.audio_shift, ours.audio_scale) == (12.0, 3.0, 4.0) and ours.sampler == "res_multistep"
    expected = comfy.samplers.calculate_sigmas(core, "simple", count)
    torch.testing.assert_close(comfy.samplers.calculate_sigmas(ours, "simple", count), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.timestep(expected), core.timestep(expected))


def test_picture_and_sound_together(narrow_model, run):
    """LTX-2's latent holds a video and its sound: both are sampled, as a stock sampler does with the same sigmas."""
    from comfy.nested_tensor import NestedTensor
    from families import ALL, make_patcher

    family = ALL["LTX-Video 2"]
    model = make_patcher(family.config, family.unet)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.model.diffusion_model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    told = {"unprocessed_ltxav_embeds": True}
    positive = [[torch.randn(1, 9, family.width, generator=generator), told]]
    latent = {"samples": NestedTensor([torch.zeros(1, *family.latent), torch.zeros(1, *family.sound)])}
    ours = run(model, positive, latent, preset="ltx2-distilled")["samples"].unbind()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    sigmas = torch.tensor([1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0])
    with torch.inference_mode():
        stock = guider.sample(
            comfy.sample.prepare_noise(latent["samples"], 5), latent["samples"],
            comfy.samplers.sampler_object("euler"), sigmas, seed=5,
        ).unbind()  # fmt: skip
    for one, other in zip(ours, stock, strict=True):
        close(one, other)
