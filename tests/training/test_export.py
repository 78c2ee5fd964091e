"""Names against diffusers' own converters, metadata, and what export refuses; small random networks.

test_export_layouts.py has the real layouts and a real ComfyUI.
"""

import hashlib
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, PixArtTransformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from PIL import Image
from small_models import make_teacher
from transformers import CLIPTextConfig, CLIPTextModel

from training.errors import UserError
from training.evaluate import sample
from training.export import export, layouts, stable_diffusion_checkpoint
from training.export.families import SD1, SD2
from training.export.metadata import LICENCE_UNKNOWN, licence_of
from training.export.names import clean_names
from training.export.open_clip import open_clip_state
from training.export.pixart import pixart_state
from training.export.stable_diffusion import LATENT_SCALE, UNET, autoencoder_state, unet_names
from training.networks.adapter import adapter_state, add_adapter
from training.recipe.config import Start, parse
from training.run.checkpoint import Checkpoint, save
from training.run.folder import write_config


def make_run(folder: Path, teacher: Path, **settings) -> Path:
    """A run folder as distill leaves it, student and average being the teacher times 1.01 and .99."""
    config = parse({"teacher": str(teacher), "prompts": "p.txt", "output": str(folder)} | settings)
    write_config(folder, config)
    state = UNet2DConditionModel.from_pretrained(teacher / "unet").state_dict()
    student, average = ({key: value * factor for key, value in state.items()} for factor in (1.01, 0.99))
    save(folder, Checkpoint({"student": student, "ema": average}, {}, {"step": 5, "bad_steps": 0}), 1)
    return folder


def small_unet(levels: int, layers: int) -> UNet2DConditionModel:
    last = "DownBlock2D" if levels > 1 else "CrossAttnDownBlock2D"
    downs = ("CrossAttnDownBlock2D",) * (levels - 1) + (last,)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 48)[:levels],
        down_block_types=downs,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(downs)),
        layers_per_block=layers,
        cross_attention_dim=8,
        attention_head_dim=8,
        norm_num_groups=8,
    )


@pytest.mark.parametrize("levels, layers", [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_unet_names_undo_diffusers_own_conversion(levels, layers):
    unet = small_unet(levels, layers)
    state = unet.state_dict()
    names = unet_names(state)
    assert len(set(names.values())) == len(state)
    prefixed = {f"model.diffusion_model.{names[key]}": value for key, value in state.items()}
    back = convert_ldm_unet_checkpoint(prefixed, dict(unet.config) | {"layers_per_block": layers})
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_unet_names_of_the_four_level_model_are_the_known_ones():
    names = unet_names(small_unet(4, 2).state_dict())
    assert names["down_blocks.0.downsamplers.0.conv.weight"] == "input_blocks.3.0.op.weight"
    assert names["down_blocks.3.resnets.1.conv1.weight"] == "input_blocks.11.0.in_layers.2.weight"
    assert names["up_blocks.0.upsamplers.0.conv.weight"] == "output_blocks.2.1.conv.weight"
    assert names["up_blocks.1.upsamplers.0.conv.weight"] == "output_blocks.5.2.conv.weight"
    assert names["up_blocks.3.attentions.2.proj_in.weight"] == "output_blocks.11.1.proj_in.weight"


def test_autoencoder_names_undo_diffusers_own_conversion():
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    )
    state = vae.state_dict()
    converted = autoencoder_state(state, LATENT_SCALE)
    assert converted["decoder.mid.attn_1.q.weight"].ndim == 4
    back = convert_ldm_vae_checkpoint(
        {f"first_stage_model.{key}": value for key, value in converted.items()}, vae.config
    )
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_what_the_layout_cannot_hold_is_refused():
    with pytest.raises(UserError, match="No place .* for `class_embedding.weight`"):
        unet_names(["class_embedding.weight"])
    with pytest.raises(UserError, match="scaling_factor is 0.13"):
        autoencoder_state({"quant_conv.weight": torch.zeros(1)}, 0.13025)


def test_text_encoder_gets_its_prefix_back():
    for key in ("embeddings.x", "text_model.embeddings.x"):
        checkpoint = stable_diffusion_checkpoint({}, AutoencoderTiny().state_dict(), {key: torch.ones(1)}, 1.0)
        assert "cond_stage_model.transformer.text_model.embeddings.x" in checkpoint


def test_export_sample_and_metadata(teacher, tmp_path):
    run = make_run(tmp_path / "run", teacher, start={"timestep": 625, "noise": "vp"}, kappa=[0.5, 3])
    averaged, last, half, unet = (tmp_path / f"{name}.safetensors" for name in ("averaged", "last", "half", "unet"))
    alone = {"check": "diffusers"}
    assert export(run, averaged, **alone) < 1e-6
    assert export(run / "checkpoints/step-00000005", last, average=False, **alone) < 1e-6
    assert 0 < export(run, half, half=True, **alone) < 2e-2
    assert export(run, unet, layout="unet", **alone) < 1e-6
    with safetensors.safe_open(averaged, "pt") as file:
        told = file.metadata()
        key = "model.diffusion_model.input_blocks.0.0.weight"
        original = UNet2DConditionModel.from_pretrained(teacher / "unet").conv_in.weight
        assert torch.equal(file.get_tensor(key), original * 0.99)
    assert told["modelspec.sai_model_spec"] == "1.0.1" and told["modelspec.resolution"] == "32x32"
    assert (told["snoopi.start_timestep"], told["snoopi.start_noise"], told["snoopi.kappa_max"]) == ("625", "vp", "3.0")
    assert told["snoopi.base_model"] == teacher.name
    for path in (averaged, half, unet):  # no folder of whoever exported it
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content and str(teacher.parent).encode() not in content
    assert half.stat().st_size < 0.51 * averaged.stat().st_size
    assert all(key.startswith("model.diffusion_model.") for key in safetensors.torch.load_file(unet))

    with pytest.raises(UserError, match="was made from `teacher.*`, which is no hub name; name .* with --teacher"):
        sample.load_model(str(averaged))
    backbone, start = sample.load_model(str(averaged), str(teacher))
    assert start == Start(timestep=625, noise="vp")
    from_run, _ = sample.load_model(str(run))
    options = {"prompts": ["red"], "count": 2, "seed": 0, "start": start}
    assert torch.equal(sample.sample(backbone, **options), sample.sample(from_run, **options))
    sample.sample_to_file(backbone, output=tmp_path / "grid.png", steps=2, **options)
    assert Image.open(tmp_path / "grid.png").format == "PNG"


def test_a_bad_source_or_target_is_a_sentence(teacher, tmp_path):
    run = make_run(tmp_path / "run", teacher)
    with pytest.raises(UserError, match="must end in .safetensors"):
        export(run, tmp_path / "student.ckpt")
    with pytest.raises(UserError, match="is no run"):
        export(tmp_path / "nowhere", tmp_path / "student.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="missing or damaged"):
        sample.load_model(str(tmp_path / "short.safetensors"))


def test_open_clip_names_undo_diffusers_own_conversion():
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 23, "num_attention_heads": 4}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=100, **size))
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    converted = open_clip_state({f"text_model.{key}": value for key, value in state.items()})
    assert len({key for key in converted if key.startswith("transformer.resblocks.23.")}) == 12
    assert all(not value.any() for key, value in converted.items() if key.startswith("transformer.resblocks.23."))
    assert converted["transformer.resblocks.0.attn.in_proj_weight"].shape == (96, 32)
    prefixed = {f"cond_stage_model.model.{key}": value for key, value in converted.items()}
    back = convert_open_clip_checkpoint(encoder, prefixed)
    back = {key.removeprefix("text_model."): value for key, value in back.items() if "layers.23." not in key}
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    with pytest.raises(UserError, match="No place in the SD 2.x layout for the text encoder's `visual.proj`"):
        open_clip_state({"visual.proj": torch.zeros(1)})


@pytest.mark.parametrize(
    "wrapped, name",
    [
        ("_orig_mod.conv_in.weight", "conv_in.weight"),
        ("module._orig_mod.down_blocks.0.x.weight", "down_blocks.0.x.weight"),
        ("_fsdp_wrapped_module.mid_block._fsdp_wrapped_module.x.bias", "mid_block.x.bias"),
        ("unet.conv_in.weight", "conv_in.weight"),
        ("base_model.model.a.to_q.base_layer.weight", "a.to_q.weight"),
        ("base_model.model.a.to_q.lora_A.default.weight", "a.to_q.lora_A.weight"),
        ("a.default.weight", "a.default.weight"),
    ],
)
def test_names_are_cleaned(wrapped, name):
    assert clean_names({wrapped: torch.zeros(1)}).keys() == {name}


def test_names_that_meet_are_refused():
    with pytest.raises(UserError, match="both called `a.weight`"):
        clean_names({"a.weight": torch.zeros(1), "module.a.weight": torch.ones(1)})


def test_the_hash_is_of_the_tensor_data(teacher, tmp_path):
    path = tmp_path / "student.safetensors"
    export(make_run(tmp_path / "run", teacher), path, check="diffusers", licence="CC0-1.0")
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata()
    assert told["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert told["modelspec.license"] == told["snoopi.base_model_license"] == "CC0-1.0"
    wanted = {
        "start_timestep",
        "start_noise",
        "kappa_min",
        "kappa_max",
        "alpha",
        "config_sha256",
        "base_model",
        "preset",
    }
    assert {f"snoopi.{key}" for key in wanted} < told.keys()
    assert not told.keys() & {"config", "_quantization_metadata", "tae_latent_channels"}  # ComfyUI acts on these


def test_the_licence_is_what_the_model_card_names(tmp_path):
    assert licence_of(str(tmp_path)) == LICENCE_UNKNOWN == licence_of("no-such-owner/no-such-model")
    for card, licence in (("---\nlicense: mit\n---\n", "mit"), ("---\n[\n---\n", None), ("no front", None)):
        (tmp_path / "README.md").write_text(card)
        assert licence_of(str(tmp_path)) == (licence or LICENCE_UNKNOWN)
    for model, licence in (("teacher", "openrail++"), ("start", "stabilityai-ai-community")):
        (tmp_path / model).mkdir()
        (tmp_path / model / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    both = str(tmp_path / "teacher"), str(tmp_path / "start")
    assert licence_of(*both) == "openrail++ and stabilityai-ai-community" and licence_of(*both[:1] * 2) == "openrail++"


def test_pixart_gets_its_embedders_once_and_the_output_stays():
    torch.manual_seed(0)
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "cross_attention_dim": 24}
    settings = size | {"sample_size": 8, "caption_channels": 16}
    plain = PixArtTransformer2DModel(**settings).eval()
    state = pixart_state(plain.state_dict())
    micro = PixArtTransformer2DModel(**settings, use_additional_conditions=True).eval()
    micro.load_state_dict(state)  # strict: these are the tensors, of these sizes
    x, text, t = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16), torch.tensor([400])
    sizes = {"resolution": torch.tensor([[512.0, 512.0]]), "aspect_ratio": torch.tensor([[1.0]])}
    with torch.no_grad():
        before = plain(x, text, t, {"resolution": None, "aspect_ratio": None}).sample
        after = micro(x, text, t, sizes).sample
    assert torch.equal(before, after)
    own = {key: value + 1 for key, value in micro.state_dict().items()}
    assert all(torch.equal(value, own[key]) for key, value in pixart_state(own).items())


def lora_run(folder: Path, teacher: Path, **student) -> Path:
    adapter = {"rank": 2, "alpha": 6, "targets": "all-linear-and-conv"}
    config = parse(
        {"teacher": str(teacher), "prompts": "p.txt", "output": "r", "student": {"lora": adapter, **student}}
    )
    write_config(folder, config)
    network = UNet2DConditionModel.from_pretrained(teacher / "unet")
    state = adapter_state(add_adapter(network, config.student.lora))
    torch.manual_seed(3)
    state = {name: 0.1 * torch.randn_like(weight) for name, weight in state.items()}
    save(folder, Checkpoint({"student": state}, {}, {"step": 5, "bad_steps": 0}), 1)
    return folder


def test_a_student_lora_is_exported_as_one_or_merged(teacher, tmp_path, monkeypatch):
    """Every linear layer and convolution of the UNet; diffusers' own LoRA loader reads the file back."""
    run, alone = lora_run(tmp_path / "run", teacher), {"check": "diffusers"}
    lora, merged = tmp_path / "lora.safetensors", tmp_path / "merged.safetensors"
    assert export(run, lora, **alone) < 1e-5  # a student that is a LoRA: that layout by default
    assert export(run, merged, layout="unet", **alone) < 1e-5
    assert lora.stat().st_size < 0.6 * merged.stat().st_size
    state = safetensors.torch.load_file(lora)
    assert state["lora_unet_conv_in.lora_down.weight"].shape == (2, 4, 3, 3) and state["lora_unet_conv_in.alpha"] == 2

    good = lora.read_bytes()
    real = layouts.kohya_lora
    monkeypatch.setattr(layouts, "kohya_lora", lambda state, scale: real(state, 2 * scale))
    with pytest.raises(UserError, match="Read back by diffusers, the file differs .* nothing kept"):
        export(run, lora, **alone)
    assert lora.read_bytes() == good and not list(tmp_path.glob(".*"))


def test_layouts_that_do_not_fit_are_refused(teacher, tmp_path):
    run = make_run(tmp_path / "run", teacher)
    with pytest.raises(UserError, match="--format is lora, but this student is whole weights"):
        export(run, tmp_path / "a.safetensors", layout="lora")
    with pytest.raises(
        UserError, match="--format is transformer; for Stable Diffusion 1.x allowed is checkpoint or unet"
    ):
        export(run, tmp_path / "a.safetensors", layout="transformer")


@pytest.mark.parametrize("spread, kind", [(0.02, "epsilon"), (0.2, "v_prediction")])
def test_what_comfyui_will_take_an_sd21_for(spread, kind):
    bias = spread * torch.tensor([1.0, -1.0] * 160)
    found, reason = layouts.comfyui_prediction({UNET + layouts.V_BIAS: bias}, SD2)
    assert found == kind and f"is {spread:.3f}, and above 0.09 means v" in reason
    assert layouts.comfyui_prediction({UNET + layouts.V_BIAS: bias}, SD1)[0] == "epsilon"


def test_without_comfyui_it_says_so(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    lines = []
    export(make_run(tmp_path / "run", teacher), tmp_path / "student.safetensors", tell=lines.append)
    assert lines[-2] == "Not read back by ComfyUI: COMFYUI_PATH names no checkout."
    assert lines[-1] == f"Its model card: {tmp_path / 'README.md'}"
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "sd.py").touch()
    export(tmp_path / "run", tmp_path / "student.safetensors", tell=lines.append)
    assert lines[-2].startswith("Not read back by ComfyUI: ComfyUI at ") and "did not load the file" in lines[-2]


def test_a_run_whose_teacher_was_changed_is_refused(teacher, tmp_path):
    run = make_run(tmp_path / "run", teacher)
    config = parse({"teacher": str(make_teacher(tmp_path / "wide", width=64)), "prompts": "p.txt", "output": str(run)})
    write_config(run, config)
    with pytest.raises(UserError, match="does not fit its teacher .*wide, was that changed"):
        export(run, tmp_path / "a.safetensors")
