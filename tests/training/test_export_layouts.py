"""The three backbones in full layout (the real number of blocks, the real names; random weights prove wiring, not
quality), exported and read back by diffusers and by a real ComfyUI from the file.

ComfyUI knows SD 1.5 and 2.1 by 320 channels and the width of the text, PixArt by 1152: these are full. The UNets keep
320 channels on all four levels. PixArt has all of its 28 blocks with SNOOPI_FULL_PIXART=1 (2.4 GB, a minute), else 3.
"""

import os
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from safetensors import safe_open
from small_models import make_pixart, make_sd3, make_teacher
from transformers import CLIPTextConfig, CLIPTextModel, T5Config

from training.errors import UserError
from training.export import export
from training.networks.adapter import adapter_state, add_adapter
from training.networks.backbones import load_backbone
from training.recipe.config import parse
from training.run.checkpoint import Checkpoint, save
from training.run.folder import write_config
from training.shapes.text import tokenizer

needs_comfyui = pytest.mark.skipif(
    not (Path(os.environ.get("COMFYUI_PATH", "none")) / "comfy/sd.py").exists(),
    reason="no ComfyUI here; `make test` brings one",
)
BLOCKS = 28 if os.environ.get("SNOOPI_FULL_PIXART") else 3
RANDOM = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0))


def built(network_class, *arguments, **settings):
    """A network with random weights whose size fits its layers, in a fraction of the time of its own initialisation."""
    with torch.device("meta"):
        network = network_class(*arguments, **settings)
    network = network.to_empty(device="cpu").requires_grad_(False)
    for number, (name, weight) in enumerate(network.named_parameters()):
        spread = 0.02 if weight.ndim == 1 or "embedding" in name else weight[0].numel() ** -0.5
        repeats = -(-weight.numel() // (len(RANDOM) - 1000))
        filled = RANDOM[number % 1000 :][: len(RANDOM) - 1000].repeat(repeats)[: weight.numel()].view(weight.shape)
        one = float(weight.ndim == 1 and "norm" in name and name.endswith("weight"))
        weight.copy_(one + spread * filled)
    return network


def full_unet(context: int, heads, **settings) -> UNet2DConditionModel:
    downs = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    return built(
        UNet2DConditionModel,
        sample_size=64,
        block_out_channels=(320,) * 4,
        down_block_types=downs,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(downs)),
        cross_attention_dim=context,
        attention_head_dim=heads,
        **settings,
    )


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    folder = make_teacher(tmp_path_factory.mktemp("sd15"), context=768)
    full_unet(768, 8).save_pretrained(folder / "unet")
    blocks = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    types = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    built(AutoencoderKL, **blocks, **types).save_pretrained(folder / "vae")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: [a]\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def sd21(tmp_path_factory):
    folder = make_teacher(tmp_path_factory.mktemp("sd21"), context=64)
    full_unet(1024, [5] * 4, use_linear_projection=True).save_pretrained(folder / "unet")
    AutoencoderTiny().save_pretrained(folder / "vae")
    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    tokens = {"bos_token_id": 0, "eos_token_id": 49407, "pad_token_id": 1}
    encoder = built(CLIPTextModel, CLIPTextConfig(vocab_size=49408, hidden_act="gelu", **size, **tokens))
    encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    folder = make_pixart(tmp_path_factory.mktemp("pixart"))
    size = {"sample_size": 64, "num_layers": BLOCKS, "caption_channels": 4096}
    built(PixArtTransformer2DModel, **size).save_pretrained(folder / "transformer")
    AutoencoderTiny(scaling_factor=0.18215).save_pretrained(folder / "vae")
    T5Config(vocab_size=32, d_model=4096).save_pretrained(folder / "text_encoder")  # no prompt is encoded
    return folder


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """As wide as ComfyUI wants it, 64 times its depth; CLIP-L whole, with CLIP's own ids, and no other text encoder."""
    folder = make_sd3(tmp_path_factory.mktemp("sd3"))
    positions = {"sample_size": 8, "pos_embed_max_size": 12}
    size = {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128}
    more = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    built(SD3Transformer2DModel, **positions, **size, **more).save_pretrained(folder / "transformer")
    tokenizer().save_pretrained(folder / "tokenizer")
    layers = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    built(CLIPTextModel, CLIPTextConfig(**layers, **ends)).save_pretrained(folder / "text_encoder")
    return folder


def make_run(folder: Path, backbone: str, teacher: Path, lora: bool = False, **settings) -> Path:
    """A run folder as distill leaves it: the teacher's weights times 1.01, or a random LoRA on the default layers."""
    values = {"teacher": str(teacher), "prompts": "p.txt", "output": str(folder), "backbone": backbone}
    student = {"student": {"lora": {"rank": 4, "alpha": 8}}} if lora else {}
    config = parse(values | student | settings)
    write_config(folder, config)
    network = load_backbone(backbone, str(teacher)).network
    if lora:
        torch.manual_seed(1)
        state = adapter_state(add_adapter(network, config.student.lora))
        state = {name: 0.05 * torch.randn_like(weight) for name, weight in state.items()}
    else:
        state = {name: weight.mul_(1.01) for name, weight in network.state_dict().items()}
    save(folder, Checkpoint({"student": state}, {}, {"step": 5, "bad_steps": 0}), 1)
    return folder


def exported(run: Path, output: Path, **options) -> str:
    """Everything that export told; it has itself refused a file that differs by more than 1e-4 in either reader."""
    lines: list[str] = []
    assert export(run, output, tell=lines.append, **options) < 1e-4
    assert output.exists() and [file.name for file in output.parent.iterdir() if file.name.startswith(".")] == []
    return "\n".join(lines)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@needs_comfyui
def test_sd15_checkpoint(sd15, tmp_path):
    told = exported(make_run(tmp_path / "run", "stable_diffusion", sd15), tmp_path / "student.safetensors")
    print(told)
    assert "as SD15, epsilon, latents times 0.18215;" in told
    assert_close(told)
    assert metadata_of(tmp_path / "student.safetensors")["modelspec.license"] == "creativeml-openrail-m"


@needs_comfyui
def test_sd15_lora_over_a_v_prediction_teacher(sd15, tmp_path):
    """ComfyUI takes every SD 1.5 for epsilon: the file says otherwise, and export too."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        (teacher / part).symlink_to(sd15 / part)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(**schedule, prediction_type="v_prediction").save_pretrained(teacher / "scheduler")
    start = {"timestep": 625, "noise": "vp"}
    run = make_run(tmp_path / "run", "stable_diffusion", teacher, lora=True, start=start)
    told = exported(run, tmp_path / "lora.safetensors")
    print(told)
    assert "It is v_prediction: load it with SNOOPI Checkpoint Loader" in told and "as SD15, epsilon" in told
    assert_close(told)
    described = metadata_of(tmp_path / "lora.safetensors")
    assert described["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert described["modelspec.prediction_type"] == "v" and described["snoopi.prediction"] == "v_prediction"
    assert (tmp_path / "lora.safetensors").stat().st_size < 20e6


@needs_comfyui
def test_sd21_checkpoint_with_its_open_clip(sd21, tmp_path):
    told = exported(make_run(tmp_path / "run", "stable_diffusion", sd21), tmp_path / "student.safetensors")
    print(told)
    assert "take the file for epsilon (the spread of output_blocks.11.1" in told and "as SD20, epsilon" in told
    assert_close(told)
    assert metadata_of(tmp_path / "student.safetensors")["modelspec.architecture"] == "stable-diffusion-v2-512"


@needs_comfyui
def test_pixart_transformer_and_lora(pixart, tmp_path):
    run = make_run(tmp_path / "run", "pixart", pixart, lora=True, start={"timestep": 400, "noise": "unit"})
    told = exported(run, tmp_path / "student.safetensors", layout="transformer")
    print(told)
    assert "as PixArtAlpha, epsilon, latents times 0.18215;" in told
    assert_close(told)
    with pytest.raises(UserError, match="for PixArt-alpha allowed is transformer or lora"):
        export(run, tmp_path / "no.safetensors", layout="checkpoint")
    if BLOCKS < 28:
        told = exported(run, tmp_path / "lora.safetensors")
        print(told)
        assert_close(told)


@needs_comfyui
def test_sd3_checkpoint_lora_and_transformer(sd3, tmp_path):
    """A flow model of two steps: both ComfyUI and diffusers start it at t = 0.72, from t times the noise."""
    start = {"timestep": 720, "noise": "vp", "steps": 2}
    run = make_run(tmp_path / "run", "stable_diffusion3", sd3, lora=True, start=start)
    told = exported(run, tmp_path / "student.safetensors", layout="checkpoint")
    print(told)
    assert "take the file for flow- (" in told and "as SD3, flow-, latents times 1.5305;" in told
    assert "decoded picture" in told and "encoded text" in told
    assert_close(told)
    described = metadata_of(tmp_path / "student.safetensors")
    assert described["snoopi.prediction"] == "flow-" and described["snoopi.start_timestep"] == "720"
    assert "snoopi.start_noise" not in described and "modelspec.prediction_type" not in described
    told = exported(run, tmp_path / "lora.safetensors")
    print(told)
    assert_close(told)
    exported(run, tmp_path / "transformer.safetensors", layout="transformer", check="diffusers")
    assert (tmp_path / "transformer.safetensors").stat().st_size < 20e6


def assert_close(told: str) -> None:
    """ComfyUI read the file, and every figure is small: latents and text to 1e-4, pictures to a tenth of a grey."""
    figures = told.split("differences: ")[1].splitlines()[0].rstrip(".").split(", ")
    limits = {"the student's latent": 1e-4, "encoded text": 1e-4, "decoded picture": 4e-4}
    for figure in figures:
        name, value = figure.rsplit(" ", 1)
        assert float(value) < limits[name], figure
