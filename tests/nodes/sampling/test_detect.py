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
    for name, row in (("instaflow.safetensors", "instaflow"), ("x.safetensors", "sd")):
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
    assert choice.preset.timesteps == (999,) and not choice.known and "says so itself" not in choice.sentence
    assert f"this version knows snoopi.format 1 alone, and it is '{format}'" in choice.sentence


def test_metadata_of_another_architecture(sampling, model, checkpoint):
    choice = choose(sampling, model, graph(checkpoint("x.safetensors", {"snoopi.preset": "yoso-pixart"})))
    assert choice.preset.name == "sd" and not choice.known
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
        assert choice.preset.name == "sd" and not choice.known
        assert "neither the file nor its name tells what the model is" in choice.sentence
    assert "Timesteps 999; eps; unit noise." in choice.sentence


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


def test_what_the_sampler_tells(pack, model, text):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    node = pack.one_step_sampler.SNOOPIOneStepSampler
    with torch.inference_mode():
        output = node.execute(model, text(1), latent, 1, "auto", negative=text(2))
    assert output.args[1].endswith("NASA alpha 0.1.") and output.ui.as_dict() == {"text": (output.args[1],)}
    with torch.inference_mode():
        told = node.execute(model, text(1), latent, 1, "instaflow", negative=text(2)).args[1]
        assert told.startswith("Preset instaflow (InstaFlow-0.9B): as chosen.") and told.endswith("NASA alpha 0.19.")
        assert node.execute(model, text(1), latent, 1, "sd", negative=text(2), alpha=0.3).args[1].endswith("alpha 0.3.")


def test_models_that_cannot_run_have_a_reason(sampling):
    import yaml

    reasons = yaml.safe_load(sampling.presets.NOT_RUNNABLE.read_text(encoding="utf-8"))
    assert {"UFOGen", "PeRFlow", "SANA-Sprint", "TwinFlow"} <= set(reasons)
    assert all(json.dumps(reason).endswith('."') for reason in reasons.values())
