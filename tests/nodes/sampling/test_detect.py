"""Which preset `auto` takes, and what it says."""

import copy
import json

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

FILES = {
    "SD 1.x": {
        "snoopi-shapes.safetensors": "snoopi-shapes",
        "instaflow_0_9B_from_sd_1_5.safetensors": "instaflow",
        "Hyper-SD15-1step-lora.safetensors": "hyper-sd-1step-lora",
        "yoso_sd1.5_lora.safetensors": "yoso-sd15",
        "lcm-lora-sdv1-5.safetensors": "lcm",
        "lcm_lora_sdv15.safetensors": "lcm",
        "SiD-LSG/batch512_sd1.5_cfg1.5_199_v2.safetensors": "sid-lsg",
    },
    "SD 2.x": {
        "sd_turbo.safetensors": "sd-turbo",
        "SwiftBrush/diffusion_pytorch_model.safetensors": "swiftbrush",
        "swiftbrush_v2.safetensors": "swiftbrush-v2",
        "SD2.1-Nitro.safetensors": "amd-nitro-sd21",
    },
    "SDXL": {
        "dmd2_sdxl_1step_unet_fp16.bin": "dmd2-sdxl-1step",
        "dmd2_sdxl_4step_unet_fp16.bin": "dmd2-sdxl-4step",
        "dmd2_sdxl_4step_lora_fp16.safetensors": "dmd2-sdxl-4step",
        "sub\\sdxl_lightning_1step_x0.safetensors": "sdxl-lightning-1step",
        "sdxl_lightning_1step_unet_x0.safetensors": "sdxl-lightning-1step",
        "sdxl_lightning_2step_lora.safetensors": "sdxl-lightning-2step",
        "sdxl_lightning_4step.safetensors": "sdxl-lightning-4step",
        "sdxl_lightning_8step_unet.safetensors": "sdxl-lightning-8step",
        "Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors": "hyper-sdxl-1step",
        "Hyper-SDXL-1step-lora.safetensors": "hyper-sd-1step-lora",
        "nitrosd-realism_comfyui.safetensors": "nitrosd-realism",
        "nitrosd-vibrant_unet.safetensors": "nitrosd-vibrant",
        "sd_xl_turbo_1.0_fp16.safetensors": "sdxl-turbo",
        "lcm_lora_sdxl.safetensors": "lcm",
    },
    "PixArt": {
        "PixArt-Alpha-DMD-XL-2-512x512.safetensors": "pixart-alpha-dmd",
        "yoso_pixart512.safetensors": "yoso-pixart",
        "PixArt-Sigma-Nitro.safetensors": "amd-nitro-pixart",
    },
    "FLUX.1": {"flux1-schnell-fp8.safetensors": "flux-schnell"},
    "FLUX.2": {"flux-2-klein-4b-fp8.safetensors": "flux2-klein", "flux-2-klein-base-4b.safetensors": None},
    "SD 3.x": {"sd3.5_large_turbo.safetensors": "sd35-turbo", "sd3.5_large.safetensors": None},
    "Z-Image": {"z_image_turbo_bf16.safetensors": "z-image-turbo", "z_image_bf16.safetensors": None},
    "Qwen-Image": {
        "Qwen-Image-Lightning-4steps-V1.0.safetensors": "qwen-image-lightning-4step",
        "Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors": "qwen-image-lightning-8step",
    },
}


@pytest.mark.parametrize("backbone", FILES)
def test_names_as_downloaded(sampling, backbone):
    for name, preset in FILES[backbone].items():
        found = sampling.detect.preset_by_file_name(name, backbone)
        assert (found and found.name) == preset, name
    assert sampling.detect.preset_by_file_name("my model v3.safetensors", backbone) is None


def test_a_name_counts_only_for_the_backbone_it_is_made_for(sampling):
    assert sampling.detect.preset_by_file_name("dmd2_sdxl_1step_unet.bin", "SD 1.x") is None


def test_every_name_in_the_table_finds_its_own_row(sampling):
    for preset in sampling.presets.read_presets().values():
        for pattern in preset.files:
            found = sampling.detect.preset_by_file_name(pattern.replace("*", "x"), preset.backbones[0])
            assert found == preset, pattern


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """checkpoint(name, metadata): a safetensors file in ComfyUI's checkpoints folder."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})

    def checkpoint(name, metadata=None):
        save_file({"x": torch.zeros(1)}, tmp_path / name, metadata=metadata)
        return name

    return checkpoint


def graph(name):
    """A graph that ends in the node "9": a loader, a node between, and an unrelated model and text."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}},
        "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["8", 1], "lora_name": "gone.pt"}},
        "8": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_turbo.safetensors"}},
        "9": {"class_type": "x", "inputs": {"model": ["2", 0], "text": "flux1-schnell.safetensors", "clip": ["8", 1]}},
    }


def choose(sampling, model, prompt, name="auto"):
    """The choice at node 9 for a clone, so that no test sees what another's file said."""
    import comfy.model_patcher

    model = comfy.model_patcher.ModelPatcher(copy.copy(model.model), model.load_device, model.offload_device)
    return sampling.detect.choose(model, name, sampling.origin.origin_of(model, prompt, "9"))


OURS = {
    "snoopi.format": "1",
    "snoopi.start_timestep": "625",
    "snoopi.start_noise": "vp",
    "snoopi.prediction": "epsilon",
}


def test_auto_knows_our_export_by_its_metadata(sampling, model, checkpoint):
    choice = choose(sampling, model, graph(checkpoint("sd_turbo.safetensors", OURS)))
    assert (choice.preset.timesteps, choice.preset.noise, choice.preset.prediction) == ((625,), "vp", "eps")
    assert "the file sd_turbo.safetensors says so itself" in choice.sentence
    said = OURS | {
        "snoopi.preset": "pg-sb-sd15",
        "snoopi.alpha": "0.12",
        "snoopi.start_timestep": "999",
        "snoopi.start_noise": "unit",
    }
    choice = choose(sampling, model, graph(checkpoint("x.safetensors", said)))
    assert choice.preset.name == "pg-sb-sd15" and choice.preset.alpha == 0.12 and choice.preset.timesteps == (999,)


@pytest.mark.parametrize("named", [{"snoopi.preset": "pg-sb-sd3"}, {}])
def test_auto_starts_a_flow_student_where_its_file_says(sampling, narrow_model, checkpoint, named):
    """A flow model has no choice of noise, so the file names none: the network gets t times the noise."""
    said = {"snoopi.format": "1", "snoopi.start_timestep": "640", "snoopi.prediction": "flow-"} | named
    model = narrow_model("SD 3.x")
    choice = choose(sampling, model, graph(checkpoint("x.safetensors", said)))
    assert choice.known and (choice.preset.timesteps, choice.preset.prediction) == ((640,), "flow-")
    patched, sigmas = sampling.one_step.steps(sampling.one_step.with_preset(model, choice.preset))
    assert sigmas.tolist() == pytest.approx([0.64, 0.0])
    noise = torch.ones(1, 16, 4, 4)
    told = patched.get_model_object("model_sampling")
    assert torch.allclose(told.noise_scaling(sigmas[:1], noise, torch.zeros_like(noise)), 0.64 * noise)
    assert told.timestep(sigmas[:1]).item() == pytest.approx(640)


@pytest.mark.parametrize("bad", [{"start_timestep": "soon"}, {"start_timestep": "1", "start_noise": "loud"},
                                 {"start_timestep": "1", "prediction": "magic"}, {"start_timestep": "5000"},
                                 {"start_timestep": "1", "alpha": "nan"}, {"start_timestep": ""}])  # fmt: skip
def test_metadata_that_makes_no_sense(sampling, model, checkpoint, bad):
    name = checkpoint("ours.safetensors", {f"snoopi.{key}": value for key, value in bad.items()})
    with pytest.raises(ValueError, match="^The file ours.safetensors describes itself in a way that cannot be read"):
        choose(sampling, model, graph(name))


@pytest.mark.parametrize("preset", ["no such row", "", "  ", "sd; instaflow", "auto", "SD", "../sd"])
def test_metadata_that_names_no_row(sampling, model, checkpoint, preset):
    """It is told, what else the file says still counts, and nothing is claimed that the file does not say."""
    for name, row in (("instaflow.safetensors", "instaflow"), ("x.safetensors", "few-step")):
        choice = choose(sampling, model, graph(checkpoint(name, {"snoopi.preset": preset})))
        assert choice.preset.name == row and choice.known == (row == "instaflow")
        assert f"names the preset '{preset}', and there is no such row." in choice.sentence
        assert "says so itself" not in choice.sentence
    choice = choose(sampling, model, graph(checkpoint("y.safetensors", OURS | {"snoopi.preset": preset})))
    assert choice.preset.timesteps == (625,) and "by what else the file y.safetensors says" in choice.sentence
    assert "there is no such row" in choice.sentence and "says so itself" not in choice.sentence


@pytest.mark.parametrize("format", ["2", "", "one", "1.5"])
def test_metadata_of_another_format(sampling, model, checkpoint, format):
    choice = choose(sampling, model, graph(checkpoint("x.safetensors", OURS | {"snoopi.format": format})))
    assert choice.preset.name == "few-step" and not choice.known and "says so itself" not in choice.sentence
    assert f"this version knows snoopi.format 1 alone, and it is '{format}'" in choice.sentence


def test_metadata_of_another_architecture(sampling, model, checkpoint):
    choice = choose(sampling, model, graph(checkpoint("x.safetensors", {"snoopi.preset": "yoso-pixart"})))
    assert choice.preset.name == "few-step" and not choice.known
    assert "names the preset yoso-pixart, which is for PixArt: that is not used" in choice.sentence


def test_metadata_that_says_nothing_of_a_preset(sampling, model, checkpoint):
    choice = choose(sampling, model, graph(checkpoint("x.safetensors", {"snoopi.kappa": "1", "format": "pt"})))
    assert not choice.known and choice.notes == ()


def test_auto_knows_a_file_by_its_name(sampling, model, checkpoint):
    choice = choose(sampling, model, graph(checkpoint("instaflow.safetensors")))
    assert choice.preset.name == "instaflow" and "by the name of the file instaflow.safetensors" in choice.sentence


def test_auto_says_when_it_cannot_tell(sampling, model, checkpoint):
    """Also for a name of no file, and for a node that ComfyUI does not know."""
    loader = graph(checkpoint("instaflow.safetensors"))
    other = loader | {"1": {"class_type": "no such node", "inputs": {"ckpt_name": "instaflow.safetensors"}}}
    for prompt in (graph("some merge.safetensors"), graph("instaflow-gone.safetensors"), None, {}, other,
                   {"9": {"inputs": {"model": ["gone", 0]}}}, {"9": {"inputs": {}}}, {"9": {}}):  # fmt: skip
        choice = choose(sampling, model, prompt)
        assert choice.preset.name == "few-step" and not choice.known
        assert "neither the file nor its name tells what the model is" in choice.sentence
    assert "timesteps 999, 874, 749" in choice.sentence and "; eps; unit noise." in choice.sentence


def test_a_loop_in_the_graph_ends(sampling, model):
    lora = {"class_type": "LoraLoader", "inputs": {"model": ["1", 0]}}
    for prompt in ({"9": lora, "1": lora | {"inputs": {"model": ["9", 0]}}}, {"9": lora, "1": lora}):
        assert sampling.origin.origin_of(model, prompt, "9").bases in ((), (None,))


@pytest.mark.parametrize("backbone", ["SD 3.x", "FLUX.1", "FLUX.2", "Z-Image", "Qwen-Image", "PixArt"])
def test_fallbacks_fit_their_backbone(sampling, narrow_model, backbone):
    choice = sampling.detect.choose(narrow_model(backbone), "auto")
    assert backbone in choice.preset.backbones
    assert choice.known == (backbone == "FLUX.1")  # the structure of schnell tells it from dev


def test_auto_takes_what_model_sampling_set(sampling, model):
    patched = sampling.model_sampling_node.SNOOPIModelSampling.execute(model, "instaflow").args[0]
    choice = sampling.detect.choose(patched, "auto")
    assert choice.preset.name == "instaflow" and "set by SNOOPI Model Sampling" in choice.sentence


@pytest.mark.parametrize(
    ("backbone", "alpha"),
    [("SD 3.x", 1.0), ("FLUX.1", 1.0), ("FLUX.2", 1.0), ("Qwen-Image", 1.0), ("Z-Image", 0.5), ("Wan", 0.5),
     ("PixArt", 0.5)],
)  # fmt: skip
def test_strength_that_suits_a_family_is_that_of_the_tooltip(sampling, narrow_model, backbone, alpha):
    assert sampling.detect.alpha_of(narrow_model(backbone)) == alpha


def test_strength_that_suits_is_that_of_the_preset_set_before(sampling, model):
    patched = sampling.model_sampling_node.SNOOPIModelSampling.execute(model, "instaflow").args[0]
    assert sampling.detect.alpha_of(patched) == 0.19 and sampling.detect.alpha_of(model) == 0.1


def test_what_the_sampler_tells(pack, model, text):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    node = pack.one_step_sampler.SNOOPIOneStepSampler
    with torch.inference_mode():
        output = node.execute(model, text(1), latent, 1, "auto", negative=text(2))
    assert "Negative strength 0.1. Preset" in output.args[1] and output.ui.as_dict() == {"text": (output.args[1],)}
    with torch.inference_mode():
        told = node.execute(model, text(1), latent, 1, "instaflow", negative=text(2)).args[1]
        assert told.startswith("Running as InstaFlow-0.9B, 1 step (as chosen).") and "Negative strength 0.19." in told
        assert node.execute(model, text(1), latent, 1, "sd", negative=text(2), alpha=0.3).args[1].count("strength 0.3.")


def test_what_is_written_on_a_node_is_what_a_person_would_say(sampling, model):
    """One sentence where nothing is in doubt, with neither backticks nor the numbers of the schedule."""
    for name in sampling.presets.read_presets():
        preset = sampling.presets.find_preset(name)
        said = sampling.detect.Choice(preset, "by the name of the file x").said
        count = len(preset.timesteps)
        assert said.startswith("Running as ") and f", {count} step{'' if count == 1 else 's'} (by the name" in said
        assert "`" not in said and "timesteps" not in said and said.count(" steps") <= 2
    preset = sampling.presets.find_preset("sdxl-lightning-4step")
    lightning = sampling.detect.Choice(preset, "by the name of the file x")
    assert lightning.said == "Running as SDXL-Lightning, 4 steps (by the name of the file x)."


def test_models_that_cannot_run_have_a_reason(sampling):
    import yaml

    reasons = yaml.safe_load(sampling.presets.NOT_RUNNABLE.read_text(encoding="utf-8"))
    assert {"UFOGen", "PeRFlow", "SANA-Sprint", "TwinFlow"} <= set(reasons)
    assert all(json.dumps(reason).endswith('."') for reason in reasons.values())


def file_choice(sampling, model, *names, loras=()):
    """What `auto` makes of a model from files of these names with LoRAs: names, or (name, strength)."""
    file = sampling.files.ModelFile
    loras = tuple(file(lora) if isinstance(lora, str) else file(lora[0], strength=lora[1]) for lora in loras)
    return sampling.detect.choose(model, "auto", sampling.origin.Origin(tuple(map(file, names)), loras))


@pytest.mark.parametrize("name, preset", [
    ("bigLust_v16DMD2.safetensors", "dmd2-sdxl-8step"), ("juggernautXL_lightning.safetensors", "sdxl-lightning-4step"),
    ("DreamShaperXL_Turbo_v2_1.safetensors", "sdxl-turbo-4step"),
    ("Juggernaut_X_RunDiffusion_Hyper.safetensors", "hyper-sd-8step"),
])  # fmt: skip
def test_a_merge_is_never_run_in_one_step(sampling, narrow_model, name, preset):
    choice = file_choice(sampling, narrow_model("SDXL"), name)
    assert choice.preset.name == preset and choice.known and len(choice.preset.timesteps) >= 4
    assert f"in the name of the file {name}" in choice.sentence or f"the name of the file {name}" in choice.sentence


def test_auto_says_how_sure_it_is(sampling, narrow_model):
    """By what a file is published as; most likely, by a word; or not at all."""
    model = narrow_model("SDXL")
    assert "(by the name of the file" in file_choice(sampling, model, "sdxl_lightning_4step.safetensors").sentence
    likely = file_choice(sampling, model, "dreamshaperXL_lightningDPMSDE.safetensors").sentence
    assert "(most likely, by the word lightning in the name of the file" in likely
    unknown = file_choice(sampling, model, "waiIllustriousSDXL_v150.safetensors")
    assert not unknown.known and "so it is run in 8 steps as few-step SDXL models mostly are" in unknown.sentence
    assert "use a KSampler with CFG if it is an undistilled model" in unknown.sentence


@pytest.mark.parametrize("backbone", ["SD 1.x", "SD 2.x", "SDXL", "PixArt", "SD 3.x", "FLUX.1", "FLUX.2", "Z-Image",
                                      "Qwen-Image", "Wan", "LTX", "Anima", "Krea 2", "Ernie-Image", "Boogu",
                                      "Mage-Flow", "Lens", "HiDream"])  # fmt: skip
def test_what_cannot_be_known_is_never_run_in_one_step(sampling, narrow_model, backbone):
    choice = sampling.detect.choose(narrow_model(backbone), "auto")
    assert backbone in choice.preset.backbones and len(choice.preset.timesteps) >= 4
    assert choice.known == (backbone == "FLUX.1")  # the structure of schnell
    for fallback in sampling.backbones.BACKBONES.values():
        assert len(sampling.presets.find_preset(fallback.fallback).timesteps) >= 4


UNDISTILLED = {"SDXL": "sd_xl_base_1.0.safetensors", "SD 3.x": "sd3.5_large_fp8_scaled.safetensors",
               "Z-Image": "z_image_bf16.safetensors", "Qwen-Image": "qwen_image_2512_fp8_e4m3fn.safetensors",
               "FLUX.2": "flux2_dev_fp8mixed.safetensors"}  # fmt: skip


@pytest.mark.parametrize("backbone", UNDISTILLED)
def test_an_undistilled_model_is_told_and_refused(sampling, narrow_model, monkeypatch, backbone):
    """On the node in one sentence; the loader only tells. With a LoRA that may be of few steps, it is not known."""
    model, name = narrow_model(backbone), UNDISTILLED[backbone]
    choice = file_choice(sampling, model, name)
    said = f"this looks like an undistilled model (by the name of the file {name}): use a KSampler with CFG, or choose"
    assert choice.undistilled and not choice.known and said in choice.sentence
    origin = sampling.origin.Origin((sampling.files.ModelFile(name),))
    monkeypatch.setattr(sampling.preset_choice_node, "origin_of", lambda *_: origin)
    for node in (sampling.model_sampling_node.SNOOPIModelSampling, sampling.scheduler_node.SNOOPIOneStepScheduler):
        with pytest.raises(ValueError, match=r"^This looks like an undistilled model \(by the name of the file"):
            node.execute(model, "auto")
        node.execute(model, choice.preset.name)
    with_lora = sampling.origin.Origin((sampling.files.ModelFile(name),), (), unknown_lora=True)
    assert not sampling.detect.choose(model, "auto", with_lora).undistilled


@pytest.mark.parametrize("backbone, name", [
    ("Anima", "anima-base-v1.0.safetensors"), ("LTX", "ltx-2-19b-dev.safetensors"),
    ("Wan", "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"),
])  # fmt: skip
def test_anima_wan_and_ltx_are_told_and_run(sampling, narrow_model, monkeypatch, backbone, name):
    model = narrow_model(backbone)
    origin = sampling.origin.Origin((sampling.files.ModelFile(name),))
    monkeypatch.setattr(sampling.preset_choice_node, "origin_of", lambda *_: origin)
    told = sampling.model_sampling_node.SNOOPIModelSampling.execute(model, "auto").args[1]
    assert "this looks like an undistilled model" in told and "use a KSampler with CFG" in told


def test_a_lora_makes_an_undistilled_model_one_of_few_steps(sampling, narrow_model):
    for backbone, base, lora, preset in (
        ("SDXL", "sd_xl_base_1.0.safetensors", "dmd2_sdxl_4step_lora.safetensors", "dmd2-sdxl-4step"),
        ("FLUX.2", "flux2_dev_fp8mixed.safetensors", "Flux2TurboComfyv2.safetensors", "flux2-dev-turbo"),
        ("Wan", "wan2.1_t2v_14B_fp8_scaled.safetensors", "lightx2v_T2V_14B_cfg_step_distill.safetensors",
         "wan21-lightx2v"),
    ):  # fmt: skip
        choice = file_choice(sampling, narrow_model(backbone), base, loras=[lora])
        assert choice.preset.name == preset and choice.known and not choice.undistilled


@pytest.mark.parametrize("strength, counts", [(1.0, True), (0.7, True), (0.5, True), (0.2, False), (-1.0, False)])
def test_a_loras_strength_counts(sampling, narrow_model, strength, counts):
    lora = "dmd2_sdxl_4step_lora.safetensors"
    choice = file_choice(sampling, narrow_model("SDXL"), "x.safetensors", loras=[(lora, strength)])
    assert choice.known == counts and (choice.preset.name == "dmd2-sdxl-4step") == counts
    said = f"The LoRA {lora} acts at strength {strength:g}, too weak to make a few-step model of it"
    assert (said in choice.sentence) != counts


def test_the_strength_that_its_authors_set_counts(sampling, narrow_model):
    """Hyper-SD's LoRA for FLUX.1 dev acts at 0.125."""
    lora = "Hyper-FLUX.1-dev-8steps-lora.safetensors"
    for strength, known in ((0.125, True), (0.02, False)):
        choice = file_choice(sampling, narrow_model("FLUX.1"), "flux1-dev.safetensors", loras=[(lora, strength)])
        assert (choice.preset.name == "flux-dev-hyper") == known


def test_a_lora_by_its_metadata_and_weights_before_its_name(sampling):
    """One trained on pictures with captions, or that changes a text encoder, is none of few steps; a title counts."""

    def named(name, **file):
        return sampling.names.named_by(sampling.files.ModelFile(name, **file), "SDXL", True)[0].row

    assert named("dmd2_style.safetensors").name == "dmd2-sdxl-8step"
    assert named("dmd2_style.safetensors", metadata={"ss_tag_frequency": "{}"}) is None
    assert named("dmd2_style.safetensors", changes_text=True) is None
    assert named("sdxl_lightning_4step_lora.safetensors", metadata={"ss_datasets": "[]"}).name == "sdxl-lightning-4step"
    assert named("fast.safetensors", metadata={"modelspec.title": "dmd2_sdxl_4step_lora"}).name == "dmd2-sdxl-4step"
    titled = {"modelspec.title": "lcm-lora-sdxl"}
    assert named("dmd2_sdxl_4step_lora.safetensors", metadata=titled).name == "lcm"


def test_a_merge_by_what_its_metadata_say_it_was_made_of(sampling):
    def named(metadata):
        file = sampling.files.ModelFile("my merge.safetensors", metadata)
        return sampling.names.named_by(file, "SDXL", False)[0].row

    recipe = {"sd_merge_recipe": json.dumps({"primary_model": {"name": "juggernautXL_v9Lightning.safetensors"}})}
    assert named(recipe).name == "sdxl-lightning-4step"
    lora = {"class_type": "LoraLoader", "inputs": {"lora_name": "dmd2_sdxl_4step_lora.safetensors"}}
    assert named({"prompt": json.dumps({"1": lora})}).name == "dmd2-sdxl-4step"
    lora["inputs"]["strength_model"] = 0
    assert named({"prompt": json.dumps({"1": lora})}) is None
    assert named({"prompt": "{", "sd_merge_models": "[[[", "sd_merge_recipe": "null"}) is None
    one_step = {"sd_merge_recipe": json.dumps({"a": "sd_xl_turbo_1.0.safetensors", "b": "x.safetensors"})}
    assert named(one_step) is None  # a merge is never run in one step
    several = {"sd_merge_recipe": json.dumps(["x_lightning.safetensors", "y_DMD2.safetensors"])}
    assert named(several) is None


def test_a_name_that_fits_two_rows(sampling, narrow_model):
    choice = file_choice(sampling, narrow_model("SDXL"), "sd_xl_turbo_dmd2_mix.safetensors")
    assert not choice.known and "auto cannot know which of several presets the name" in choice.sentence
    assert "sdxl-turbo" in choice.sentence and "dmd2-sdxl-8step" in choice.sentence


def test_a_row_of_the_user_that_takes_the_place_of_ours(sampling, narrow_model, user_rows):
    user_rows("lcm:\n  backbones: [SDXL]\n  prediction: eps\n  follows_base: true\n  timesteps: [999, 499]\n"
              "  files: [lcm-lora]\n  folder: loras\n")  # fmt: skip
    choice = file_choice(sampling, narrow_model("SDXL"), "x.safetensors", loras=["lcm-lora-sdxl.safetensors"])
    assert choice.preset.timesteps == (999, 499)
    assert "Your own row lcm takes the place of the pack's." in choice.sentence


def test_a_lora_for_another_family(sampling, narrow_model):
    """It changes nothing in the model, and stands in the graph before it."""
    origin = sampling.origin.Origin((), idle=("dmd2_sdxl_4step_lora.safetensors", "add_detail.safetensors"))
    choice = sampling.detect.choose(narrow_model("SD 1.x"), "auto", origin)
    assert choice.said.endswith(
        "The LoRA dmd2_sdxl_4step_lora.safetensors is for SDXL and changes nothing in this SD 1.x model."
    )
    assert "changes nothing" not in sampling.detect.choose(narrow_model("SDXL"), "auto", origin).sentence
