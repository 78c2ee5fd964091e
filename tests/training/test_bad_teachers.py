"""The issue's list of wrong teachers and old configs, each as a folder and as a file: one clear sentence. Small models.

More that no teacher can be: test_bad_commands.py; of SDXL: test_sdxl.py.
"""

import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from diffusers import UNet2DConditionModel
from small_models import make_sdxl

from training.errors import UserError
from training.export.stable_diffusion import unet_names
from training.networks.backbones import load_backbone
from training.recipe.config import differences, flat, load, parse

ORIGINAL = "model.diffusion_model."


def refusal(backbone: str, source: Path, parts: Path | None = None) -> str:
    with pytest.raises(UserError) as refused:
        load_backbone(backbone, str(source), parts=str(parts) if parts else None)
    sentence = str(refused.value)
    assert source.name in sentence and len(sentence) < 400 and "\n" not in sentence
    return sentence


def written(path: Path, **shapes) -> Path:
    tensors = {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def single_files(folder: Path, target: Path) -> list[Path]:
    """The UNet of a diffusers folder as a file: diffusers' names, original names, and as a checkpoint has them."""
    state = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    original = {name: state[key] for key, name in unet_names(state).items()}
    kinds = {
        "diffusers": state,
        "bare": original,
        "checkpoint": {ORIGINAL + key: value for key, value in original.items()},
    }
    for name, tensors in kinds.items():
        safetensors.torch.save_file(tensors, target / f"{folder.name}-{name}.safetensors")
    return [target / f"{folder.name}-{name}.safetensors" for name in kinds]


def other_unet(teacher: Path, folder: Path, **changes) -> Path:
    """The teacher with a UNet of another kind."""
    shutil.copytree(teacher, folder)
    config = dict(UNet2DConditionModel.load_config(folder / "unet")) | changes
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def refiner(tmp_path_factory) -> Path:
    """In small, but told its five sizes by as many channels as the real one."""
    sizes = {"cross_attention_dim": 12, "projection_class_embeddings_input_dim": 12 + 5 * 256}
    return make_sdxl(tmp_path_factory.mktemp("refiner"), sizes=256, **sizes)


def test_an_sdxl_where_sd_15_is_asked_names_the_backbone_to_set(teacher, sdxl, tmp_path):
    for source in (sdxl, *single_files(sdxl, tmp_path)):
        told = refusal("stable_diffusion", source, None if source.is_dir() else teacher)
        assert "is an SDXL, whose UNet also wants pooled text and sizes; set `backbone: stable_diffusion_xl`." in told


def test_an_sd_15_where_sdxl_is_asked_names_the_backbone_to_set(teacher, sdxl, tmp_path):
    for source in (teacher, *single_files(teacher, tmp_path)):
        told = refusal("stable_diffusion_xl", source, None if source.is_dir() else sdxl)
        assert "is no SDXL, " in told and "set `backbone: stable_diffusion`." in told


@pytest.mark.parametrize("backbone", ["stable_diffusion", "stable_diffusion_xl"])
def test_a_refiner_is_told_by_its_name_whichever_backbone_is_asked(backbone, refiner, teacher, tmp_path):
    parts = teacher if backbone == "stable_diffusion" else make_sdxl(tmp_path / "base", sizes=256)
    for source in (refiner, *single_files(refiner, tmp_path)):
        told = refusal(backbone, source, None if source.is_dir() else parts)
        assert "is SDXL's refiner, which only finishes the pictures of its base; give the base model" in told


@pytest.mark.parametrize("channels, what", [(9, "inpainting"), (8, "instruct"), (5, "depth")])
def test_an_inpainting_instruct_or_depth_unet_names_its_channels(channels, what, teacher, sdxl, tmp_path):
    for kind, parts in (("stable_diffusion", teacher), ("stable_diffusion_xl", sdxl)):
        folder = other_unet(parts, tmp_path / f"{what}-of-{kind}", in_channels=channels)
        for source in (folder, *single_files(folder, tmp_path)):
            told = refusal(kind, source, None if source.is_dir() else parts)
            assert f"reads {channels} channels and writes 4: a model for inpainting, editing or depth" in told
            assert "give its text-to-image base" in told


LORA_NAMES = (
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",
    "base_model.model.transformer_blocks.0.attn2.to_q.lora_A.default.weight",
    "transformer.transformer_blocks.0.attn.to_q.lora_B.weight",
    "lora_unet_x.hada_w1_a",
    "lora_unet_x.lokr_w1",
    "lora_unet_x.oft_blocks",
    "lora_unet_x.oft_diag",
    "lora_unet_x.a1.weight",
    "lora_unet_x.dora_scale",
    "lora_unet_x.diff",
)


@pytest.mark.parametrize("backbone", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion3", "pixart"])
def test_a_lora_as_teacher_is_told_to_be_one(backbone, teacher, sdxl, sd3, pixart, tmp_path):
    parts = {"stable_diffusion": teacher, "stable_diffusion_xl": sdxl, "stable_diffusion3": sd3, "pixart": pixart}
    for name in LORA_NAMES:
        told = refusal(backbone, written(tmp_path / "one", **{name: (4, 4)}), parts[backbone])
        assert "is a LoRA, which only patches a model; give the model that it was made for" in told
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tmp_path / "one.safetensors", folder / "pytorch_lora_weights.safetensors")
    assert "is a LoRA, which only patches a model" in refusal(backbone, folder)


#: The settings of the trainer's first day, and of the days before its files moved; none has another name today.
BEFORE_THE_MOVE = """
backbone: stable_diffusion
teacher: stable-diffusion-v1-5/stable-diffusion-v1-5
teacher_parts: null
prompts: training/configs/prompts.txt
prompt_column: null
skip_bad_prompts: false
output: runs/sd15
seed: 0
device: auto
mixed_precision: no
gradient_checkpointing: true
micro_batch: 4
optimizer: adamw
latent_size: null
batch_size: 64
steps: 60000
kappa: [0.5, 4]
kappa_per: batch
cfg_on: both
fixed_kappa: 1.0
null_prompt: ''
gradient_clip: 1.0
start: {timestep: 999, noise: unit}
student: {lora: null, start_from: null, learning_rate: 1e-6, betas: [0.9, 0.999], weight_decay: 0.01, ema_decay: null}
lora: {rank: 64, alpha: 128, targets: [to_q, to_v], init: gaussian, learning_rate: 1e-3, betas: [0.9, 0.999],
       weight_decay: 0.01, updates: 1, fresh: true, initial_steps: 0, timesteps: [0, 999], weight: alpha_squared,
       null_probability: 0.1}
vsd: {timesteps: [20, 980], weight: sigma_squared, x0_weight_cap: 10}
clip: {weight: 0.1, margin: 0.37, model: laion/CLIP-ViT-B-32-laion2B-s34B-b79K, decoder: madebyollin/taesd, one_in: 8}
nasa: null
warm_start: null
checkpoint_every: 1000
keep_checkpoints: 2
sample_every: 500
sample_prompts: [a]
samples_per_prompt: 8
log_every: 10
tracker: null
max_bad_steps: 20
encoded_prompts: null
text_cache_megabytes: 1024
"""


def test_a_config_of_before_the_move_says_today_what_it_said(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(BEFORE_THE_MOVE)
    config = load(path)
    read, written = dict(flat(config)), yaml.safe_load(BEFORE_THE_MOVE)
    assert read["student.weight_decay"] == 0.01 and read["mixed_precision"] == "no"
    assert read["kappa"] == written["kappa"] and read["clip.margin"] == 0.37
    assert {"student.schedule": "constant", "lora.warmup_steps": 0}.items() <= read.items()
    assert differences(config, parse(written)) == []


@pytest.mark.parametrize(
    "key, hint",
    [
        ("rank", "did you mean `student.lora.rank` or `lora.rank`?"),
        ("learning_rate", "`student.learning_rate` or `lora.learning_rate` or `warm_start.learning_rate`?"),
        ("ema_decay", "did you mean `student.ema_decay`?"),
        ("batchsize", "did you mean `batch_size`?"),
    ],
)
def test_a_setting_in_a_wrong_place_is_told_its_own(settings, key, hint):
    with pytest.raises(UserError, match=re.escape(f"there is no setting `{key}`; ") + ".*" + re.escape(hint)):
        parse(settings | {key: 1})
