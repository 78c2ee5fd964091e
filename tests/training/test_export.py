"""The exported file against two independent readers: diffusers' converter and a real ComfyUI."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from PIL import Image

from conftest import make_teacher
from training import sample
from training.checkpoint import Checkpoint, save
from training.config import Start, parse
from training.errors import UserError
from training.export import export, stable_diffusion_checkpoint
from training.export.stable_diffusion import LATENT_SCALE, autoencoder_state, unet_names
from training.runs import write_config

REPOSITORY = Path(__file__).parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", REPOSITORY / "build/comfyui"))


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
    assert export(run, averaged) == 0
    assert export(run / "checkpoints/step-00000005", last, average=False) == 0
    assert 0 < export(run, half, half=True) < 2e-2
    assert export(run, unet, layout="unet") == 0
    with safetensors.safe_open(averaged, "pt") as file:
        told = file.metadata()
        key = "model.diffusion_model.input_blocks.0.0.weight"
        original = UNet2DConditionModel.from_pretrained(teacher / "unet").conv_in.weight
        assert torch.equal(file.get_tensor(key), original * 0.99)
    assert told["modelspec.sai_model_spec"] == "1.0.1" and told["modelspec.resolution"] == "32x32"
    assert (told["snoopi.start_timestep"], told["snoopi.start_noise"], told["snoopi.kappa_max"]) == ("625", "vp", "3.0")
    assert half.stat().st_size < 0.51 * averaged.stat().st_size
    assert all(not key.startswith("model.") for key in safetensors.torch.load_file(unet))

    backbone, start = sample.load_model(str(averaged))
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


IN_COMFYUI = """
import sys
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, COMFYUI)
import torch, numpy
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd
model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(FILE, output_vae=True, output_clip=True)
z, text, latent = (torch.from_numpy(array) for array in numpy.load(IN).values())
sampling, found = model.model.model_sampling, {}
with torch.inference_mode():
    model.model.to(torch.float32)
    for timestep in (999, 625):
        sigma = sampling.sigmas[timestep].view(1)
        x = sampling.noise_scaling(sigma, z.clone(), torch.zeros_like(z), timestep == 999)
        found[f"x0_{timestep}"] = model.model.apply_model(x, sigma.expand(len(x)), c_crossattn=text).numpy()
    # ComfyUI's VAE takes latents that the sampler has divided by .18215 already
    found["pictures"] = vae.decode(latent / SCALE).float().numpy()
clip_state = clip.cond_stage_model.state_dict()
found["clip"] = clip_state["clip_l.transformer.text_model.encoder.layers.11.mlp.fc2.weight"].float().numpy()
numpy.savez(OUT, **found)
"""


@pytest.mark.skipif(not (COMFYUI / "comfy/sd.py").exists(), reason="no ComfyUI here; `make test` brings one")
def test_stock_comfyui_agrees_in_one_step(tmp_path):
    """Full-width text encoder and 320 channels, since ComfyUI knows an SD 1.5 by these; both starts, decoded too."""
    teacher = make_teacher(tmp_path / "teacher", width=320, context=768)
    run = make_run(tmp_path / "run", teacher)
    export(run, tmp_path / "student.safetensors")

    backbone, _ = sample.load_model(str(run))
    z = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    latent = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    text = backbone.encode(["a red circle", "a pet"])
    numpy.savez(tmp_path / "in.npz", z=z, text=text, latent=latent)
    values = {"COMFYUI": COMFYUI, "FILE": tmp_path / "student.safetensors", "IN": tmp_path / "in.npz"}
    values |= {"OUT": tmp_path / "out.npz", "SCALE": LATENT_SCALE}
    code = "".join(f"{name} = {value if name == 'SCALE' else str(value)!r}\n" for name, value in values.items())
    done = subprocess.run([sys.executable, "-c", code + IN_COMFYUI], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    found = numpy.load(tmp_path / "out.npz")
    for timestep, noise in ((999, "unit"), (625, "vp")):
        with torch.no_grad():
            expected = backbone.one_step(backbone.unet, z, text, timestep, noise).numpy()
        assert numpy.linalg.norm(found[f"x0_{timestep}"] - expected) / numpy.linalg.norm(expected) < 1e-4
    assert numpy.abs(found["pictures"] * 255 - backbone.decode(latent)).max() < 1.5
    wanted = backbone.text_encoder.state_dict()
    weight = wanted[next(key for key in wanted if key.endswith("layers.11.mlp.fc2.weight"))].numpy()
    assert numpy.allclose(found["clip"], weight, atol=1e-4)  # ComfyUI keeps the text encoder in 16 bits
