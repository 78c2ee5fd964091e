"""The trainer under test, loaded from its folder without putting the repository on sys.path (see nodes/), and a tiny
teacher: a diffusers folder with 32 channels, one level, 4x4 latents, random weights."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]

if not hasattr(sys.modules.get("training"), "__file__"):
    spec = importlib.util.spec_from_file_location(
        "training", REPOSITORY / "training/__init__.py", submodule_search_locations=[str(REPOSITORY / "training")]
    )
    sys.modules["training"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["training"])


def make_teacher(folder: Path, width: int = 32, context: int = 32) -> Path:
    """width: channels of the one-level UNet; context: width of the text encoder (768 is CLIP-L whole). Seeded."""
    from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(width,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=context,
        attention_head_dim=8,
        norm_num_groups=32 if width > 32 else 8,
    ).save_pretrained(folder / "unet")
    AutoencoderTiny(scaling_factor=0.7).save_pretrained(folder / "vae")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,'"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tokenizer / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(tokenizer / "vocab.json"), str(tokenizer / "merges.txt"), model_max_length=77).save_pretrained(
        tokenizer
    )
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=context,
            intermediate_size=4 * context,
            num_hidden_layers=2 if context < 768 else 12,
            num_attention_heads=4 if context < 768 else 12,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1,
        )
    ).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    ).save_pretrained(folder / "scheduler")
    return folder


def make_pixart(folder: Path, micro_conditions: bool = False) -> Path:
    """PixArt-alpha in small: two blocks of 24 channels, 4x4 latents, a T5 of one layer and a few words. Seeded."""
    from diffusers import AutoencoderTiny, DDIMScheduler, PixArtTransformer2DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=4,
        caption_channels=12,
        use_additional_conditions=micro_conditions,
    ).save_pretrained(folder / "transformer")
    AutoencoderTiny().save_pretrained(folder / "vae")
    DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").save_pretrained(folder / "scheduler")
    words = ["<pad>", "</s>", "<unk>", *"a red blue circle square pet ugly blurry".split()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tokenizer")
    size = {"vocab_size": 32, "d_model": 12, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 3}
    T5EncoderModel(T5Config(**size)).save_pretrained(folder / "text_encoder")
    return folder


def make_clip(folder: Path, tokenizer: Path) -> Path:
    """A CLIP of two layers for 32 px pictures, with the tokenizer of another folder. Seeded."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": 49408, "bos_token_id": 78, "eos_token_id": 79, "pad_token_id": 79}
    vision = layers | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pixart(tmp_path_factory) -> Path:
    return make_pixart(tmp_path_factory.mktemp("pixart"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory, teacher) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"), teacher / "tokenizer")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def settings(teacher, tmp_path) -> dict:
    """Plain values of a run of a few steps through all three phases."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\nred\na circle\na pet\n")
    return {
        "teacher": str(teacher),
        "prompts": str(prompts),
        "output": str(tmp_path / "run"),
        "device": "cpu",
        "batch_size": 2,
        "steps": 4,
        "start": {"timestep": 625, "noise": "vp"},
        "student": {"learning_rate": 1e-4, "ema_decay": 0.9},
        "lora": {"rank": 2, "alpha": 2, "updates": 2, "initial_steps": 1},
        "warm_start": {"steps": 2, "pairs": 70, "sampler_steps": 2},
        "checkpoint_every": 1,
        "sample_every": 4,
        "sample_prompts": ["red", "a circle"],
        "samples_per_prompt": 3,
        "log_every": 1,
    }


@pytest.fixture(autouse=True)
def one_accelerator_a_run():
    """accelerate keeps one process-wide state; every run of a test session starts its own."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
