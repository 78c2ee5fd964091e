"""Image to image, masks, batches, other samplers, and what must live beside a preset."""

import comfy.sample
import comfy.samplers
import pytest
import torch


def truth_of_steps(model, text, run, network_inputs, preset, image, seed=5, **inputs):
    received = []
    handle = network_inputs(model, received)
    out = run(model, text(1), {"samples": image}, seed=seed, preset=preset, **inputs)["samples"]
    handle.remove()
    return received, out


@pytest.fixture
def network_inputs():
    def network_inputs(model, received):
        return model.model.diffusion_model.register_forward_pre_hook(lambda _, args: received.append(args[:2]))

    return network_inputs


def acp(timestep):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)[timestep]


@pytest.mark.parametrize(
    "preset, denoise, timesteps",
    [
        ("lcm", 1.0, [999, 759, 499, 259]),
        ("lcm", 0.8, [759, 499, 259]),
        ("lcm", 0.759, [759, 499, 259]),
        ("lcm", 0.5, [499, 259]),
        ("lcm", 0.3, [259]),
        ("sid-lsg", 0.7, [625]),
    ],
)
def test_image_to_image(model, text, run, network_inputs, preset, denoise, timesteps):
    """From the first listed timestep at or under the strength, with add_noise at that timestep."""
    image = torch.linspace(-4, 4, 256).view(1, 4, 8, 8)
    received, _ = truth_of_steps(model, text, run, network_inputs, preset, image, denoise=denoise)
    assert [int(t[0]) for _, t in received] == timesteps
    if denoise < 1:
        z = comfy.sample.prepare_noise(image, 5)
        scaled, acp_t = image * model.model.latent_format.scale_factor, float(acp(timesteps[0]))
        expected = acp_t**0.5 * scaled + (1 - acp_t) ** 0.5 * z
        torch.testing.assert_close(received[0][0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("denoise, start", [(0.99, 749), (0.75, 749), (0.5, 499), (0.499, 499), (0.25, 249)])
@pytest.mark.parametrize("preset, family", [("sdxl-turbo", "SDXL"), ("sd-turbo", "SD 2.1")])
def test_turbo_changes_a_picture_as_its_card_does(models, run, network_inputs, preset, family, denoise, start):
    """2 steps at strength 0.5 are 999 and 499, of which the second is left: x0 from add_noise at 499, in one step."""
    model = models[family]
    width = model.model.model_config.unet_config["context_dim"]
    text = [[torch.randn(1, 77, width), {"pooled_output": torch.randn(1, 1280)}]]
    image, received, predicted = torch.linspace(-4, 4, 256).view(1, 4, 8, 8), [], []
    handles = [
        network_inputs(model, received),
        model.model.diffusion_model.register_forward_hook(lambda *args: predicted.append(args[-1])),
    ]
    out = run(model, text, {"samples": image}, preset=preset, denoise=denoise)["samples"]
    for handle in handles:
        handle.remove()
    ((x_in, t),), (eps,) = received, predicted
    assert t.tolist() == [start]
    z, scale, acp_t = comfy.sample.prepare_noise(image, 5), model.model.latent_format.scale_factor, float(acp(start))
    torch.testing.assert_close(x_in, acp_t**0.5 * image * scale + (1 - acp_t) ** 0.5 * z, rtol=1e-4, atol=1e-5)
    x0 = (x_in - (1 - acp_t) ** 0.5 * eps) / acp_t**0.5 / scale
    torch.testing.assert_close(out, x0, rtol=1e-3, atol=1e-3)


def test_turbo_from_nothing_is_as_before(sampling, models):
    patched = sampling.one_step.with_preset(models["SDXL"], sampling.presets.find_preset("sdxl-turbo"))
    model, sigmas = sampling.one_step.steps(patched)
    assert model is patched and len(sigmas) == 2
    assert patched.get_model_object("model_sampling").timestep(sigmas[:1]).tolist() == [999]


def test_too_low_a_denoise_names_what_works(sampling, models):
    """A preset for this kind of model that starts low enough, each of which does."""
    every = sampling.presets.read_presets()
    for family, backbone in (("SD 1.5", "SD 1.x"), ("SD 2.1", "SD 2.x"), ("SDXL", "SDXL")):
        for name, row in every.items():
            if backbone not in row.backbones:
                continue
            patched = sampling.one_step.with_preset(models[family], row)
            for denoise in (0.05, 0.3, 0.5, 0.99):
                try:
                    assert len(sampling.one_step.steps(patched, denoise)[1]) > 1
                    continue
                except ValueError as error:
                    sentence = str(error)
                assert sentence.startswith(f"denoise is {denoise:g}, but the preset {name} starts no lower than ")
                raised = float(sentence.split("raise denoise to ")[1].split(",")[0].removesuffix("."))
                assert len(sampling.one_step.steps(patched, raised)[1]) > 1 and len(sentence) < 600
                others = sentence.split("choose its preset: ")[1:]
                for other in others[0].removesuffix(".").split(", ") if others else ():
                    if other == "...":  # there are more
                        continue
                    assert other != name and backbone in every[other].backbones
                    other = sampling.one_step.with_preset(models[family], every[other])
                    assert len(sampling.one_step.steps(other, denoise)[1]) > 1
                assert others or denoise == 0.05


def test_image_to_image_of_turbo_by_stock_nodes(sampling, models, run):
    """Scheduler and Model Sampling of ours give what the sampler gives."""
    model = models["SDXL"]
    text = [[torch.randn(1, 77, 40), {"pooled_output": torch.randn(1, 1280)}]]
    image = torch.linspace(-4, 4, 256).view(1, 4, 8, 8)
    patched = sampling.model_sampling_node.SNOOPIModelSampling.execute(model, "sdxl-turbo").args[0]
    sigmas = sampling.scheduler_node.SNOOPIOneStepScheduler.execute(model, "sdxl-turbo", 0.5).args[0]
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(text, text)
    with torch.inference_mode():
        out = guider.sample(
            comfy.sample.prepare_noise(image, 5), image, comfy.samplers.sampler_object("euler"), sigmas, seed=5
        )
    expected = run(model, text, {"samples": image}, preset="sdxl-turbo", denoise=0.5)["samples"]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_image_to_image_of_a_flow_model(narrow_model, run, network_inputs):
    model = narrow_model("FLUX.1")
    text = [[torch.randn(1, 9, 32), {"pooled_output": torch.randn(1, 32)}]]
    image = torch.randn(1, 16, 8, 8)
    received = []
    handle = network_inputs(model, received)
    run(model, text, {"samples": image}, preset="flux-schnell", denoise=0.6)
    handle.remove()
    assert [round(float(t[0]), 4) for _, t in received] == [0.5, 0.25]
    z = comfy.sample.prepare_noise(image, 5)
    expected = 0.5 * z + 0.5 * model.model.latent_format.process_in(image)
    torch.testing.assert_close(received[0][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", ["sd", "lcm", "instaflow", "sid-lsg", "yoso-sd15"])
def test_mask_keeps_what_it_covers(model, text, run, preset):
    image, mask = torch.full((2, 4, 8, 8), 0.5), torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1
    for denoise in (1.0, 0.7) if preset == "lcm" else (1.0,):
        out = run(model, text(1), {"samples": image, "noise_mask": mask}, preset=preset, denoise=denoise)["samples"]
        torch.testing.assert_close(out[..., 4:, :], image[..., 4:, :], rtol=1e-5, atol=1e-4)
        assert (out[..., :4, :] - image[..., :4, :]).abs().mean() > 0.1


def test_pictures_of_a_batch_are_their_own(model, text, run):
    """One picture alone is the same as in a batch: for a preset that draws noise of its own too."""
    for preset in ("dmd-sd15", "yoso-sd15", "sid-lsg"):
        both = run(model, text(1), {"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 1]}, preset=preset)[
            "samples"
        ]
        alone = run(model, text(1), {"samples": torch.zeros(1, 4, 8, 8), "batch_index": [1]}, preset=preset)["samples"]
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_informed_start_is_over_the_pictures(sampling):
    latents = torch.randn(64, 4, 2, 2, generator=torch.Generator().manual_seed(0)) * 3 + 2
    z = torch.randn(64, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    start = sampling.parameterization.informed_start(z, latents)
    other = (start - latents.mean(0)) / latents.std(0)
    assert abs(float(other.mean())) < 0.05 and abs(float(other.std()) - 1) < 0.05
    assert abs(float((other * z).mean())) < 0.1  # another noise than z
    assert torch.equal(sampling.parameterization.informed_start(z[:1], latents[:1]), latents[:1])


def test_all_schedulers_start_where_the_preset_does(sampling, model):
    for preset in ("dmd2-sdxl-4step", "sid-lsg", "instaflow", "lcm"):
        row = sampling.presets.find_preset(preset)
        base = model.model.model_sampling
        table = sampling.parameterization.PREDICTIONS[row.prediction](
            row, base, 1000 if row.is_flow else model.model.model_config
        )
        assert torch.equal(table.timestep(table.listed_sigmas()).float(), torch.tensor(row.timesteps).float())
        steps = len(row.timesteps)
        listed = torch.cat([table.listed_sigmas(), torch.zeros(1)])
        assert torch.equal(comfy.samplers.calculate_sigmas(table, "simple", steps), listed)
        for scheduler in ("normal", "sgm_uniform", "karras", "exponential", "simple", "beta", "linear_quadratic"):
            for count in (1, steps, 20):
                sigmas = comfy.samplers.calculate_sigmas(table, scheduler, count)
                torch.testing.assert_close(sigmas[0], table.sigma_max, rtol=1e-3, atol=1e-4)
                assert torch.isfinite(sigmas).all() and sigmas[-1] == 0 and (sigmas.diff() <= 0).all()
        sigmas = table.sigmas[::7]
        torch.testing.assert_close(table.sigma(table.timestep(sigmas)), sigmas, rtol=5e-3, atol=1e-5)
        assert table.percent_to_sigma(0) > 1e3 or row.is_flow
        assert table.percent_to_sigma(1) == 0
        assert 0 < table.percent_to_sigma(0.5) < float(table.sigma_max)


def test_sampler_custom_advanced(sampling, model, text, run):
    """Our scheduler and model sampling with stock nodes give what our sampler gives."""
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    for preset in ("lcm", "sid-lsg", "instaflow", "dmd2-sd15"):
        expected = run(model, text(1), latent, preset=preset)["samples"]
        patched, told = sampling.model_sampling_node.SNOOPIModelSampling.execute(model, preset).args
        row = sampling.presets.find_preset(preset)
        count = "1 step" if len(row.timesteps) == 1 else f"{len(row.timesteps)} steps"
        assert f"Set the KSampler to {count}, CFG 1, {row.sampler}, simple." in told
        sigmas = sampling.scheduler_node.SNOOPIOneStepScheduler.execute(model, preset).args[0]
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(text(1), text(1))
        sampler = comfy.samplers.sampler_object(row.sampler)
        with torch.inference_mode():
            out = guider.sample(
                comfy.sample.prepare_noise(latent["samples"], 5), latent["samples"], sampler, sigmas, seed=5
            )
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_tcd_adds_new_noise_and_model_sampling_says_that_a_ksampler_does_not(sampling, model, text, run):
    """That the noise is that of its authors' scheduler, test_presets shows."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    row = sampling.presets.find_preset("tcd")
    assert (row.gamma, sampling.schedule.with_steps(row, 8).gamma) == (0.3, 0.3)
    plain, one = run(model, text(1), latent, preset="pcm-4step")["samples"], run(model, text(1), latent, preset="tcd")
    assert torch.equal(one["samples"], run(model, text(1), latent, preset="tcd")["samples"])
    assert not torch.allclose(one["samples"], plain, atol=1e-2)
    told = sampling.model_sampling_node.SNOOPIModelSampling.execute(model, "tcd").args[1]
    assert "euler, simple. It leaves out the new noise between the steps: only the SNOOPI One-Step Sampler adds" in told
    for field, value in (("renoise", "fresh"), ("prediction", "flow-")):
        with pytest.raises(ValueError, match="gamma"):
            sampling.schedule.changed(row, "Here", **{field: value, "gamma": 0.3})


def test_a_lora_and_nasa_act_before_and_after(pack, sampling, model, text, run):
    """Weight patches and NASA on the model count, in any order with SNOOPI Model Sampling."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    weight = model.model.state_dict()[name]

    def lora(model):
        model = model.clone()
        model.add_patches({name: (torch.full_like(weight, 0.05),)}, 1.0)
        return model

    def preset(model):
        return sampling.model_sampling_node.SNOOPIModelSampling.execute(model, "sid-lsg").args[0]

    plain = run(model, text(1), latent, preset="sid-lsg")["samples"]
    before, after = (
        run(preset(lora(model)), text(1), latent, preset="auto"),
        run(lora(preset(model)), text(1), latent, preset="auto"),
    )
    assert torch.equal(before["samples"], after["samples"]) and not torch.allclose(before["samples"], plain)
    steered = run(model, text(1), latent, preset="sid-lsg", negative=text(2), alpha=0.4)["samples"]
    nasa = pack.nasa_patch.NASACrossAttentionPatch.execute
    for order in (
        lambda m: preset(nasa(m, text(2), 0.4, 0.0, 1.0).args[0]),
        lambda m: nasa(preset(m), text(2), 0.4, 0.0, 1.0).args[0],
    ):
        assert torch.equal(run(order(model), text(1), latent, preset="auto")["samples"], steered)


def test_two_presets_of_one_model_do_not_mix(model, text, run):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    first = {
        name: run(model, text(1), latent, preset=name)["samples"] for name in ("sd", "instaflow", "yoso-sd15", "lcm")
    }
    for name in reversed(first):
        assert torch.equal(run(model, text(1), latent, preset=name)["samples"], first[name])


def test_latent_scale_does_not_leak(sampling, narrow_model):
    model = narrow_model("PixArt")
    patched = sampling.one_step.with_preset(model, sampling.presets.find_preset("pixart-alpha-dmd"))
    assert patched.get_model_object("latent_format").scale_factor == 0.18215
    assert model.get_model_object("latent_format").scale_factor == 0.13025 and not model.object_patches


def test_compiled(sampling, model, text, run):
    """torch.compile leaves the result as it is, and a second preset finds its own schedule."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    expected = {name: run(model, text(1), latent, preset=name)["samples"] for name in ("sid-lsg", "instaflow")}
    compiled = model.clone()
    compiled.add_object_patch(
        "diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend="eager")
    )
    for name, truth in expected.items():
        out = run(compiled, text(1), latent, preset=name)["samples"]
        torch.testing.assert_close(out, truth, rtol=1e-4, atol=1e-4)
