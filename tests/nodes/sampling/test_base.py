"""A preset for a LoRA or a family takes what is predicted from the model it runs on; one for a whole model does not."""

import math

import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import latent_preview
import pytest
import torch

KEYS = {
    "v": ["v_pred"],
    "v, zero terminal SNR": ["v_pred", "ztsnr"],
    "EDM": ["edm_mean", "edm_std"],
    "v on EDM": ["edm_vpred.sigma_max"],
}
FOLLOWING = ["sd", "few-step", "dmd2-sdxl-4step", "lcm", "sdxl-lightning-2step", "sdxl-lightning-4step",
             "sdxl-lightning-8step", "hyper-sd-1step-lora"]  # fmt: skip
WHOLE = ["sdxl-turbo", "sdxl-lightning-1step", "dmd2-sdxl-1step", "hyper-sdxl-1step", "nitrosd-realism",
         "nitrosd-realism-4step", "nitrosd-vibrant", "nitrosd-vibrant-4step"]  # fmt: skip


@pytest.fixture(scope="module")
def sdxl(models):
    """sdxl(base): a narrow SDXL as ComfyUI builds it for a file that holds such keys, with the weights of another."""

    def sdxl(base):
        config = comfy.supported_models.SDXL(dict(models["SDXL"].model.model_config.unet_config))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({key: torch.tensor(120.0) for key in KEYS.get(base, ())}, "", device="cpu")
        model.diffusion_model.load_state_dict(models["SDXL"].model.diffusion_model.state_dict())
        return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))

    return sdxl


@pytest.fixture
def traced(run, text, monkeypatch):
    """traced(model, preset): what the network received and gave at each step, the sampler's x0 there, the result."""

    def traced(model, preset):
        calls, pictures = [], []
        hook = model.model.diffusion_model.register_forward_hook(
            lambda _, received, out: calls.append((received[0].double(), float(received[1][0]), out.double()))
        )
        monkeypatch.setattr(latent_preview, "prepare_callback", lambda *_: lambda *args: pictures.append(args[1]))
        width, pooled = model.model.model_config.unet_config["context_dim"], torch.zeros(1, 1280)
        positive = [[embedding, told | {"pooled_output": pooled}] for embedding, told in text(1, width=width)]
        out = run(model, positive, {"samples": torch.zeros(1, 4, 8, 8)}, preset=preset)["samples"]
        hook.remove()
        return calls, pictures, out

    return traced


def alphas_cumprod(zero_terminal_snr):
    acp = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    if zero_terminal_snr:  # arXiv 2305.08891, algorithm 1, and ComfyUI's last value, which is not quite 0
        roots = acp.sqrt()
        acp = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        acp[-1] = 4.8973451890853435e-08
    return acp


def check_v(calls, pictures, timesteps, acp):
    """x0 = alpha_t * x_in - sigma_vp * v at every step, the first from the noise itself."""
    assert [told for _, told, _ in calls] == list(timesteps)
    torch.testing.assert_close(calls[0][0], comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), 5).double(),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    for (x_in, told, v), x0 in zip(calls, pictures, strict=True):
        alpha, sigma = acp[int(told)].sqrt(), (1 - acp[int(told)]).sqrt()
        torch.testing.assert_close(x0.double(), alpha * x_in - sigma * v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("preset", FOLLOWING)
def test_a_v_model_runs_as_v(sampling, sdxl, traced, preset, zero_terminal_snr):
    """The same by the file's key, and by a ModelSampling node on a model that holds none."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    row = sampling.presets.find_preset(preset)
    for model in (
        sdxl("v, zero terminal SNR" if zero_terminal_snr else "v"),
        ModelSamplingDiscrete().patch(sdxl(""), "v_prediction", zero_terminal_snr)[0],
    ):
        calls, pictures, out = traced(model, preset)
        acp = alphas_cumprod(zero_terminal_snr)
        if row.output == "tcd":
            (x_in, told, v), first = calls[0], acp[0]
            alpha, sigma = acp[int(told)].sqrt(), (1 - acp[int(told)]).sqrt()
            expected = first.sqrt() * (alpha * x_in - sigma * v) + (1 - first).sqrt() * (sigma * x_in + alpha * v)
            torch.testing.assert_close(pictures[0].double(), expected, rtol=1e-4, atol=1e-4)
        else:
            check_v(calls, pictures, row.timesteps, acp)
        torch.testing.assert_close(out * model.model.latent_format.scale_factor, pictures[-1], rtol=1e-4, atol=1e-3)
        choice = sampling.detect.choose(model, preset)
        assert "; v; " in choice.sentence and "It follows the model it runs on, which predicts v." in choice.sentence


@pytest.mark.parametrize("base, data, low, high", [("EDM", 0.5, 0.002, 80.0), ("v on EDM", 1.0, 0.002, 120.0)])
@pytest.mark.parametrize("preset", ["sd", "lcm", "sdxl-lightning-4step"])
def test_an_edm_model_runs_as_edm(sampling, sdxl, traced, preset, base, data, low, high):
    """The schedule is the model's own table of 1000; the network is told log(sigma) / 4 (Karras and others 2022)."""
    row = sampling.presets.find_preset(preset)
    calls, pictures, _ = traced(sdxl(base), preset)
    table = torch.linspace(math.log(low), math.log(high), 1000, dtype=torch.float64).exp()
    for (x_in, told, out), x0, timestep in zip(calls, pictures, row.timesteps, strict=True):
        sigma = float(table[timestep])
        assert told == pytest.approx(math.log(sigma) / 4, abs=1e-5)
        x = x_in * math.hypot(sigma, data)
        skip, scale = data**2 / (sigma**2 + data**2), sigma * data / math.hypot(sigma, data)
        expected = skip * x + scale * out * (1 if base == "EDM" else -1)
        torch.testing.assert_close(x0.double(), expected, rtol=1e-4, atol=1e-4)


def test_an_eps_model_runs_as_eps(sampling, sdxl):
    for preset in FOLLOWING:
        choice = sampling.detect.choose(sdxl(""), preset)
        assert choice.preset == sampling.presets.find_preset(preset) and choice.notes == ()


@pytest.mark.parametrize("base", KEYS)
@pytest.mark.parametrize("preset", WHOLE)
def test_a_preset_for_a_whole_model_is_refused_on_one_that_says_otherwise(sampling, sdxl, run, text, preset, base):
    with pytest.raises(ValueError, match=f"^The preset {preset} is for a whole model that predicts .*, but this model"):
        run(sdxl(base), text(1, width=40), {"samples": torch.zeros(1, 4, 8, 8)}, preset=preset)


def test_auto_does_not_take_a_preset_that_the_model_contradicts(sampling, sdxl):
    names = {"sd_xl_turbo_v_pred.safetensors": "few-step", "noob-vpred-dmd2_sdxl_4step.safetensors": "dmd2-sdxl-4step"}
    for name, preset in names.items():
        origin = sampling.origin.Origin((sampling.files.ModelFile(name),))
        choice = sampling.detect.choose(sdxl("v"), "auto", origin)
        assert choice.preset.name == preset and choice.preset.prediction == "v"
        assert ("The preset sdxl-turbo is not for a model that predicts v" in choice.sentence) == (preset == "few-step")


def test_set_before_by_our_own_node(sampling, sdxl, traced):
    """SNOOPI Model Sampling, and another preset behind it: both see the model's own prediction."""
    model = sampling.model_sampling_node.SNOOPIModelSampling.execute(sdxl("v"), "lcm").args[0]
    assert sampling.detect.choose(model, "auto").preset.prediction == "v"
    for preset in ("auto", "sdxl-lightning-4step"):
        calls, pictures, _ = traced(model, preset)
        timesteps = sampling.presets.find_preset("lcm" if preset == "auto" else preset).timesteps
        check_v(calls, pictures, timesteps, alphas_cumprod(False))


def test_lcm_by_a_node_of_comfyui_before(sampling, sdxl, traced):
    """ModelSamplingDiscrete "lcm" has a table of 50 sigmas; the listed timesteps are met all the same."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    (model,) = ModelSamplingDiscrete().patch(sdxl(""), "lcm", False)
    calls, pictures, _ = traced(model, "lcm")
    plain, stock, _ = traced(sdxl(""), "lcm")
    assert [told for _, told, _ in calls] == [999, 759, 499, 259]
    for one, other in zip(pictures, stock, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


def test_every_row_says_whose_prediction_it_is(sampling):
    """A row whose file is a LoRA follows the base, but for flow models, whose rows list the noise levels themselves."""
    for preset in sampling.presets.read_presets().values():
        if preset.is_flow:
            assert not preset.follows_base
        elif "loras" in preset.folder or preset.name in ("sd", "pixart", "few-step"):
            assert preset.follows_base, preset.name
        else:
            assert not preset.follows_base, preset.name
