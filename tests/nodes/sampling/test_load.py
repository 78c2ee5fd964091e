"""The loader: what it knows of a file, what it repairs, and what it refuses."""

import io
import os
import pickle
import zipfile

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.model_base import ModelType
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's two folders of models, empty."""
    for folder in ("checkpoints", "diffusion_models"):
        (tmp_path / folder).mkdir()
        endings = {".safetensors", ".ckpt", ".bin", ".pt", ".sft"}
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path / folder)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture
def load(sampling):
    def load(name, preset="auto"):
        return sampling.checkpoint_loader_node.SNOOPICheckpointLoader.execute(name, preset).args

    return load


def test_a_checkpoint_of_ours(sampling, folders, load, untrained_checkpoint):
    """By its metadata, whatever it is called, without any graph to look at, and on every clone."""
    (folders / "checkpoints" / "my merge.safetensors").symlink_to(untrained_checkpoint)
    assert sampling.load.model_names() == ["checkpoints/my merge.safetensors"]
    model, clip, vae, info = load("checkpoints/my merge.safetensors")
    assert clip is not None and vae is not None
    assert info.startswith("Running as ") and "the file my merge.safetensors says so itself" in info
    choice = sampling.detect.choose(model.clone(), "auto")
    assert choice.preset.timesteps == (625,) and choice.preset.noise == "vp" and choice.known
    model = load("checkpoints/my merge.safetensors", "instaflow")[0]
    assert sampling.detect.choose(model, "auto").preset.timesteps == (1000,)
    with pytest.raises(ValueError, match="^The preset yoso-pixart is for PixArt, but the model is SD 1.x: choose auto"):
        load("checkpoints/my merge.safetensors", "yoso-pixart")
    with pytest.raises(ValueError, match="^There is no preset called nothing"):
        load("checkpoints/my merge.safetensors", "nothing")


def test_the_mean_of_two_students_of_ours(sampling, folders, load, untrained_checkpoint):
    """What `python -m training merge` writes: the mean network, and `auto` runs it as it ran both."""
    from training.export.merge import merge

    unet = "model.diffusion_model."
    with safe_open(untrained_checkpoint, "pt") as file:
        told = file.metadata()
        first = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    second = {name: value * 1.5 if name.startswith(unet) else value for name, value in first.items()}
    save_file(second, folders / "second.safetensors", told)
    output = folders / "checkpoints" / "mean.safetensors"
    merge([str(untrained_checkpoint), str(folders / "second.safetensors")], output, [0.5, 0.5])
    model, clip, vae, info = load("checkpoints/mean.safetensors")
    assert clip is not None and vae is not None and "the file mean.safetensors says so itself" in info
    choice = sampling.detect.choose(model, "auto")
    assert choice.preset.timesteps == (625,) and choice.preset.noise == "vp" and choice.known
    name = "out.2.weight"
    weight = model.model.diffusion_model.get_parameter(name).float()
    assert torch.allclose(weight, first[unet + name].float() * 1.25, rtol=2e-3)
    assert "one step from timestep 625" in (folders / "checkpoints/README.md").read_text()


def pixart(tokens):
    """A PixArt of one block without size embedding, in the layout its authors publish, all zeros."""
    import comfy.ops

    model = PixArtMS(depth=1, micro_condition=False, model_max_length=tokens, dtype=torch.float16,
                     device="meta", operations=comfy.ops.disable_weight_init)  # fmt: skip
    return {name: torch.zeros(value.shape, dtype=torch.float16) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "name, tokens, preset, scale",
    [
        ("other.safetensors", 120, "auto", 0.18215),
        ("other.safetensors", 300, "auto", 0.13025),
        ("PixArt-Alpha-DMD-XL-2-512x512.safetensors", 300, "auto", 0.18215),
        ("other.safetensors", 300, "yoso-pixart", 0.18215),
    ],
)
def test_pixart_alpha_is_told_from_sigma(folders, load, name, tokens, preset, scale):
    save_file(pixart(tokens), folders / "diffusion_models" / name)
    model, clip, vae, info = load(f"diffusion_models/{name}", preset)
    assert type(model.model.model_config).__name__ == "PixArtSigma" and clip is None and vae is None
    assert model.get_model_object("latent_format").scale_factor == scale
    assert model.model.latent_format.scale_factor == 0.13025
    assert ("its latent scale is set to 0.18215" in info) == (scale == 0.18215)


@pytest.mark.parametrize(
    "name, metadata, guessed_v, expected",
    [
        ("x", {}, True, ModelType.V_PREDICTION),
        ("x", {"modelspec.prediction_type": "epsilon"}, True, ModelType.EPS),
        ("x", {"modelspec.prediction_type": "v"}, False, ModelType.V_PREDICTION),
        ("sd_turbo.safetensors", {}, True, ModelType.EPS),
        ("sd_turbo.safetensors", {}, False, ModelType.EPS),
    ],
)
def test_sd2_predicts_what_the_file_says(sampling, name, metadata, guessed_v, expected):
    config = comfy.supported_models.SD20(
        {"in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1], "channel_mult": [1],
         "transformer_depth": [1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1],
         "context_dim": 32, "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False,
         "image_size": 32, "dtype": torch.float32}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    bias = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0]) * guessed_v}
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(config.get_model(bias, "", device="cpu"), cpu, cpu)
    guessed = ModelType.V_PREDICTION if guessed_v else ModelType.EPS
    assert model.model.model_type == guessed
    file = sampling.files.ModelFile(name, metadata)
    choice = sampling.detect.choose(model, "auto", sampling.origin.Origin((file,)))
    repaired, said = sampling.load.repaired(model, file, choice)
    sigma, x, out = torch.tensor([2.0]), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5)
    denoised = float(repaired.get_model_object("model_sampling").calculate_denoised(sigma, out, x))
    assert denoised == pytest.approx(0.0 if expected == ModelType.EPS else 1 / 5 - 0.5 * 2 / 5**0.5)
    assert bool(said) == (expected != guessed) and not model.object_patches


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def pickled(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious(), protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("folder", ["checkpoints", "diffusion_models"])
@pytest.mark.parametrize(
    "name, write, sentence",
    [
        ("a.safetensors", lambda path: path.write_bytes(b"no weights"), "a.safetensors is corrupt or incomplete"),
        ("a.safetensors", lambda path: path.write_bytes(b""), "a.safetensors is corrupt or incomplete"),
        ("half.safetensors", lambda path: (save_file({"x": torch.zeros(999)}, path),
                                           path.write_bytes(path.read_bytes()[:500])), "half.safetensors is corrupt"),
        ("b.safetensors", lambda path: save_file({"lora_up": torch.zeros(3)}, path), "b.safetensors is not a model"),
        ("c.bin", lambda path: torch.save({"x": torch.zeros(3)}, path), "c.bin is not a model that ComfyUI knows"),
        ("d.ckpt", lambda path: path.write_bytes(b"PK\x03\x04 no archive"), "d.ckpt is corrupt or incomplete"),
        ("e.pt", pickled, "e.pt is a pickle that holds more than weights"),
        ("f.ckpt", lambda path: path.write_bytes(pickle.dumps(Malicious())), "f.ckpt is a pickle that holds more"),
        ("g.ckpt", lambda path: path.write_bytes(b""), "g.ckpt is corrupt or incomplete"),
    ],
)  # fmt: skip
def test_files_that_are_refused(folders, load, folder, name, write, sentence):
    write(folders / folder / name)
    with pytest.raises(ValueError) as error:
        load(f"{folder}/{name}")
    assert str(error.value).startswith(sentence) and str(error.value).endswith(".")


def test_a_pickle_of_weights_is_loaded(folders, load):
    weights = folders / "weights.safetensors"
    save_file(pixart(120), weights)
    torch.save(load_file(weights), folders / "diffusion_models" / "yoso_pixart512.bin")
    assert "by the name of the file yoso_pixart512.bin" in load("diffusion_models/yoso_pixart512.bin")[3]


@pytest.mark.parametrize("name", ["checkpoints/gone.safetensors", "../x.safetensors", "loras/x.safetensors", "x"])
def test_files_that_are_not_there(folders, load, name):
    with pytest.raises(ValueError, match="is not there: put the file into models/"):
        load(name)


UNET = "model.diffusion_model."
ODD_KEYS = {
    "a number for a convolution": {UNET + "input_blocks.0.0.weight": torch.zeros(())},
    "a list for a convolution": {UNET + "input_blocks.0.0.weight": torch.zeros(4)},
    "an embedding of no width": {
        UNET + "input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3), UNET + "label_emb.0.0.weight": torch.zeros(()),
    },
    "text keys of no width": {
        UNET + "input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(3),
    },
    "a block that is not there": {UNET + "input_blocks.9.0.weight": torch.zeros(3)},
    "an SD3 of no depth": {UNET + "joint_blocks.0.context_block.attn.qkv.weight": torch.zeros(3)},
    "a FLUX of no width": {UNET + "double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(3)},
    "a name that is no text": {UNET + "\0\n": torch.zeros(3)},
}  # fmt: skip


@pytest.mark.parametrize("folder", ["checkpoints", "diffusion_models"])
@pytest.mark.parametrize("keys", ODD_KEYS.values(), ids=ODD_KEYS)
def test_c16_odd_keys_are_no_model(folders, load, folder, keys):
    save_file(keys, folders / folder / "odd.safetensors")
    with pytest.raises(ValueError, match="^odd.safetensors is not a model that ComfyUI knows, or belongs in another"):
        load(f"{folder}/odd.safetensors")


def full_gpu(*_, **__):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")


def full_machine(*_, **__):
    return torch.empty(10**15)


@pytest.mark.parametrize("full, kind", [(full_gpu, torch.cuda.OutOfMemoryError), (full_machine, ValueError)])
def test_c16_out_of_memory_is_said(folders, load, monkeypatch, full, kind):
    """That of a GPU stays one: ComfyUI unloads its models for it. No GPU here, so it is raised in its stead."""
    (folders / "diffusion_models" / "big.safetensors").write_bytes(b"x")
    monkeypatch.setattr(comfy.sd, "load_diffusion_model", full)
    with pytest.raises(kind, match="^big.safetensors does not fit, out of memory: close other programs"):
        load("diffusion_models/big.safetensors")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs a user whose rights can be dropped")
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_c16_a_file_that_may_not_be_read(sampling, folders, load, monkeypatch, name):
    path = folders / "diffusion_models" / name
    path.write_bytes(b"x")
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: str(path))
    os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match=f"^{name} cannot be read .Permission denied.: check its permissions"):
            load(f"diffusion_models/{name}")
    finally:
        os.seteuid(0)


def saved(value) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("a.gguf", b"GGUF\3\0\0\0", "a.gguf is a GGUF file: load it with the loader of ComfyUI-GGUF instead."),
        ("a.safetensors", b"GGUF\3\0\0\0", "a.safetensors is a GGUF file: load it with"),
        ("a.ckpt", saved([1, 2, 3]), "a.ckpt is not a model that ComfyUI knows"),
        ("a.ckpt", saved(3), "a.ckpt is not a model that ComfyUI knows"),
        ("a.ckpt", saved({"state_dict": 3}), "a.ckpt is not a model that ComfyUI knows"),
        ("a.ckpt", saved({1: 2, None: 3}), "a.ckpt is not a model that ComfyUI knows"),
        ("a.ckpt", b"\x80\x02.", "a.ckpt is corrupt or incomplete"),
        ("a.ckpt", b"\x80\x02X\xff\xff\xff\x7fabc.", "a.ckpt is"),
    ],
)
def test_c16_other_files(folders, load, name, content, sentence):
    (folders / "diffusion_models" / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load(f"diffusion_models/{name}")
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("name", [5, None, ["1", 0], {"a": 1}, "checkpoints/\0", "checkpoints/\ud800", "x" * 9_999])
def test_c16_names_that_are_none(folders, load, name):
    with pytest.raises(ValueError, match="is not there: put the file into models/checkpoints") as error:
        load(name)
    assert len(str(error.value)) < 300
