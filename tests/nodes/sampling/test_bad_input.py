"""One sentence for every bad input, which names it and says what to do."""

import pytest
import torch

ROW = "x:\n  prediction: eps\n  timesteps: [9]\n"


@pytest.mark.parametrize(
    "table, sentence",
    [
        ("", "{path} holds no rows"),
        ("- a", "{path} holds no rows"),
        ("x: [", "{path} is not YAML"),
        ("x: 3", "{path}, line 1, row x, field prediction: it is missing."),
        ("x:\n  timesteps: [9]", "{path}, line 1, row x, field prediction: it is missing."),
        ("x:\n  prediction: eps", "{path}, line 1, row x, field timesteps: it is missing."),
        ("x:\n  prediction: eps\n  timesteps:", "{path}, line 3, row x, field timesteps: it is empty."),
        (ROW + "  timestep: 9", "{path}, line 4, row x, field timestep: there is no such field; the fields are"),
        (ROW + "  noise: loud", "{path}, line 4, row x, field noise: 'loud' is not one of unit, vp, ipi."),
        (ROW + "  noise: [vp]", "{path}, line 4, row x, field noise: ['vp'] is not one of unit, vp, ipi."),
        (ROW + "  renoise: yes", "{path}, line 4, row x, field renoise: True is not one of none, fresh."),
        (ROW + "  backbones: [SDXL, SD9]", "{path}, line 4, row x, field backbones: 'SD9' is not one of SD 1.x"),
        (ROW + "  levels: [9, 8]", "{path}, line 4, row x, field levels: there are 2, but 1 timesteps."),
        (ROW + "  alpha: .nan", "{path}, line 4, row x, field alpha: nan is not a number from 0 to 2."),
        (ROW + "  alpha: 3", "{path}, line 4, row x, field alpha: 3 is not a number from 0 to 2."),
        (ROW + "  latent_scale: 0", "{path}, line 4, row x, field latent_scale: 0 would divide by zero."),
        (ROW + "  latent_scale: -1", "{path}, line 4, row x, field latent_scale: -1 is not a number from 0 to 100."),
        (ROW + "  alphas_cumprod: 1", "{path}, line 4, row x, field alphas_cumprod: 1 would divide by zero."),
        (ROW + "  resolution: 51.5", "{path}, line 4, row x, field resolution: 51.5 is not a whole number."),
        (ROW + "  resolution: 0", "{path}, line 4, row x, field resolution: 0 is not a number from 1 to 65536."),
        (ROW + "  channels: -4", "{path}, line 4, row x, field channels: -4 is not a number from 1"),
        (ROW + "  model: 3", "{path}, line 4, row x, field model: 3 is not text."),
        (ROW + "  files: ['*']", "{path}, line 4, row x, field files: '*' is not the name of a file."),
        (ROW + ROW, "{path}, line 4: there are two rows called x: give one another name."),
        ("x: {prediction: eps, timesteps: []}", "{path}, line 1, row x, field timesteps: there are none."),
        ("x: {prediction: eps, timesteps: [1000]}", "{path}, line 1, row x, field timesteps: 1000 is not a whole"),
        ("x: {prediction: eps, timesteps: [true]}", "{path}, line 1, row x, field timesteps: True is not a whole"),
        ("x: {prediction: eps, timesteps: [9.5]}", "{path}, line 1, row x, field timesteps: 9.5 is not a whole"),
        ("x: {prediction: flow+, timesteps: [0]}", "{path}, line 1, row x, field timesteps: 0 is not a number above"),
        ("x: {prediction: flow+, timesteps: [1001]}", "{path}, line 1, row x, field timesteps: 1001 is not a number"),
        ("x: {prediction: v, timesteps: [1, 2]}", "{path}, line 1, row x, field timesteps: 1, 2 do not fall"),
        (
            "x: {prediction: flow-, timesteps: [9], noise: vp}",
            "{path}, line 1, row x, field noise: a flow model has no",
        ),
    ],
)
def test_malformed_rows_of_the_user(sampling, model, text, run, user_rows, table, sentence):
    """Named with file, line and field as soon as a node runs; the lists of presets in the nodes stay usable."""
    user_rows(table)
    with pytest.raises(ValueError) as error:
        run(model, text(1), {"samples": torch.zeros(1, 4, 8, 8)}, preset="auto")
    assert str(error.value).startswith(sentence.format(path=sampling.presets.user_path()))
    options = sampling.preset_choice_node.preset_input().options
    assert options == ["auto", *sampling.presets.read_presets()]


def test_rows_of_the_user(sampling, model, text, run, user_rows):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    user_rows(
        "mine: {prediction: eps, timesteps: [625], noise: vp, files: [my model]}\n"
        "sd: {prediction: flow+, timesteps: [1000]}\n"
    )
    assert sampling.preset_choice_node.preset_input().options[-1] == "mine"
    assert torch.equal(
        run(model, text(1), latent, preset="mine")["samples"], run(model, text(1), latent, preset="sid-lsg")["samples"]
    )
    assert torch.equal(
        run(model, text(1), latent, preset="sd")["samples"], run(model, text(1), latent, preset="instaflow")["samples"]
    )
    assert sampling.detect.preset_by_file_name("My_Model.safetensors", "SD 1.x").name == "mine"
    user_rows("mine: {prediction: eps, timesteps: [9]}")
    assert sampling.presets.find_preset("mine").timesteps == (9,)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"preset": "no such"}, "There is no preset called no such: choose one of sd, snoopi-shapes, "),
        (
            {"preset": "pixart-alpha-dmd"},
            "The preset pixart-alpha-dmd is for PixArt, but the model is SD 1.x: choose auto",
        ),
        ({"preset": "flux-schnell"}, "The preset flux-schnell is for FLUX.1, but the model is SD 1.x: choose auto"),
        ({"denoise": 0.5}, "denoise is 0.5, but the preset sd starts no lower than 0.999: raise denoise to 1, or load"),
        ({"denoise": 0.2, "preset": "lcm"}, "denoise is 0.2, but the preset lcm starts no lower than 0.259: raise den"),
        ({"denoise": 0.0}, "denoise is 0.0: give a number above 0 and up to 1."),
        ({"denoise": float("nan")}, "denoise is nan: give a number above 0 and up to 1."),
        ({"latent": {"samples": torch.zeros(1, 4, 0, 8)}}, "The latent_image is of size 1 x 4 x 0 x 8: connect"),
        ({"latent": {"samples": torch.zeros(0, 4, 8, 8)}}, "The latent_image is of size 0 x 4 x 8 x 8: connect"),
        ({"latent": {"samples": torch.zeros(4, 8)}}, "The latent_image is of size 4 x 8: connect"),
        ({"latent": {}}, "The latent_image is without samples: connect"),
        ({"positive": []}, "The positive conditioning is empty"),
        ({"negative": [[torch.zeros(1, 77, 24), {}]], "alpha": 11.0}, "alpha is 11.0: give a number from 0 to 10."),
    ],
)
def test_bad_input_of_the_sampler(model, text, run, change, sentence):
    inputs = {"positive": text(1), "latent": {"samples": torch.zeros(1, 4, 8, 8)}} | change
    with pytest.raises(ValueError) as error:
        run(model, **inputs)
    assert str(error.value).startswith(sentence) and str(error.value).endswith(".")
    assert not model.object_patches


def test_pixart_on_sdxl(models, sampling):
    with pytest.raises(
        ValueError, match="is for PixArt, but the model is SDXL: choose auto or one of sd, dmd2-sdxl-1step"
    ):
        sampling.model_sampling_node.SNOOPIModelSampling.execute(models["SDXL"], "yoso-pixart")


def test_a_family_without_presets(sampling, aura_flow):
    with pytest.raises(
        ValueError, match="^The model \\(AuraFlow\\) is of a family that no preset is for: choose a model"
    ):
        sampling.detect.choose(aura_flow, "auto")
    with pytest.raises(ValueError, match="^The preset sd is for SD 1.x and SD 2.x and SDXL, but the model is AuraFlow"):
        sampling.one_step.with_preset(aura_flow, sampling.presets.find_preset("sd"))
    open_row = sampling.presets.Preset("open", "eps", (9,))
    with pytest.raises(ValueError, match="^The preset open is for models with a schedule of 1000 timesteps, but"):
        sampling.one_step.with_preset(aura_flow, open_row)
