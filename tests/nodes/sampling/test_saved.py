"""What ComfyUI's own saving nodes write of a model with a preset, read back from the file."""

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from safetensors import safe_open


@pytest.fixture
def save(tmp_path):
    """save(model): the keys and our words in the file that ModelSave writes."""

    def save(model, sampling):
        from comfy_extras.nodes_model_merging import save_checkpoint

        save_checkpoint(model, filename_prefix="saved", output_dir=str(tmp_path))
        path = max(tmp_path.glob("*.safetensors"))
        with safe_open(path, framework="pt") as file:
            keys = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("model.")}  # noqa: SIM118
        metadata = sampling.files.read_metadata(str(path))
        return keys, {key: value for key, value in metadata.items() if key.startswith("snoopi.")}

    return save


def sdxl(models, *keys):
    config = comfy.supported_models.SDXL(dict(models["SDXL"].model.model_config.unet_config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({key: torch.tensor(120.0) for key in keys}, "", device="cpu")
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def execute(sampling, model, preset):
    return sampling.model_sampling_node.SNOOPIModelSampling.execute(model, preset).args[0]


@pytest.mark.parametrize("preset, expected", [
    ("sid-lsg", {"preset": "sid-lsg", "start_timestep": "625", "start_noise": "vp", "prediction": "epsilon"}),
    ("instaflow", {"preset": "instaflow", "start_timestep": "1000", "prediction": "flow+", "alpha": "0.19"}),
    ("lcm", {"preset": "lcm"}),
])  # fmt: skip
def test_the_words_of_a_preset(sampling, model, save, preset, expected):
    assert save(model, sampling)[1] == {}
    keys, words = save(execute(sampling, model, preset), sampling)
    assert words == {"snoopi.format": "1"} | {f"snoopi.{key}": value for key, value in expected.items()}
    assert keys.keys() == {"snoopi.metadata"}
    assert save(model, sampling)[1] == {}
    file = sampling.files.ModelFile("x.safetensors", words)
    choice = sampling.detect.choose(model, "auto", sampling.origin.Origin((file,)))
    assert choice.preset == sampling.presets.find_preset(preset) and "says so itself" in choice.sentence


def test_an_unknown_preset_is_not_claimed(sampling, model, save):
    assert save(execute(sampling, model, "auto"), sampling)[1] == {}


def test_the_last_preset_counts_and_a_merge_none(sampling, model, save):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    twice = execute(sampling, execute(sampling, model, "instaflow"), "sid-lsg")
    assert save(twice, sampling)[1]["snoopi.preset"] == "sid-lsg"
    (merged,) = ModelMergeSimple().merge(twice, model, 0.5)
    assert save(merged, sampling)[1] == {}
    assert save(twice, sampling)[1]["snoopi.preset"] == "sid-lsg"


@pytest.mark.parametrize("keys", [["v_pred"], ["v_pred", "ztsnr"], ["edm_vpred.sigma_max"]])
def test_the_keys_by_which_comfyui_knows_a_v_model(sampling, models, save, keys):
    """They are in the file with a preset as without one."""
    plain, _ = save(sdxl(models, *keys), sampling)
    found, words = save(execute(sampling, sdxl(models, *keys), "lcm"), sampling)
    assert set(keys) <= plain.keys() and found.keys() == plain.keys() | {"snoopi.metadata"}
    assert all(torch.equal(found[key], value) for key, value in plain.items()) and words["snoopi.preset"] == "lcm"


def test_a_model_sampling_node_before_a_preset_is_saved(sampling, models, save):
    """ComfyUI writes v_pred only for what the file said; the preset was used on what the node says."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    (model,) = ModelSamplingDiscrete().patch(sdxl(models), "v_prediction", True)
    found, _ = save(execute(sampling, model, "lcm"), sampling)
    assert {"v_pred", "ztsnr"} <= found.keys()


def test_words_that_are_no_words(sampling, tmp_path):
    """A hostile or converted file is read as far as it makes sense."""
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    for content, expected in (
        (torch.tensor(list(b'{"snoopi.preset": "sd"}')).half(), {"snoopi.preset": "sd"}),
        (torch.tensor(list(b"[1]"), dtype=torch.uint8), {}),
        (torch.tensor(list(b"{"), dtype=torch.uint8), {}),
        (torch.full((4,), float("nan")), {}),
        (torch.zeros(100000, dtype=torch.uint8), {}),
        (torch.zeros((), dtype=torch.uint8), {}),
        (torch.zeros(0, dtype=torch.uint8), {}),
        (torch.tensor([255, 254], dtype=torch.uint8), {}),
    ):
        save_file({"snoopi.metadata": content}, path)
        assert sampling.files.read_metadata(str(path)) == expected
        path.unlink()


@pytest.mark.parametrize("node", ["one_step_sampler", "model_sampling", "scheduler", "checkpoint_loader"])
def test_every_node_that_reads_a_table_or_a_file_notices_a_change(sampling, user_rows, node, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (kind,) = (value for name, value in vars(getattr(sampling, f"{node}_node")).items()
               if name.startswith("SNOOPI") and hasattr(value, "define_schema"))  # fmt: skip
    inputs = {input.id: None for input in kind.define_schema().inputs} | {"preset": "sd"}
    inputs |= {"model_name": "checkpoints/x.safetensors"} if "model_name" in inputs else {}
    seen = [kind.fingerprint_inputs(**inputs)]
    for text in ("a: {prediction: eps, timesteps: [9]}", "a: [broken", "\x00"):
        user_rows(text)
        seen.append(kind.fingerprint_inputs(**inputs))
    (tmp_path / "x.safetensors").write_bytes(b"1")
    seen += [kind.fingerprint_inputs(**inputs)] if "model_name" in inputs else []
    assert len(set(seen)) == len(seen)
    assert kind.fingerprint_inputs(**inputs) == seen[-1]
    if "model_name" in inputs:  # the name by a link, which ComfyUI does not give here
        linked = kind.fingerprint_inputs(**inputs | {"model_name": None})
        (tmp_path / "x.safetensors").write_bytes(b"22")
        assert kind.fingerprint_inputs(**inputs | {"model_name": None}) != linked
