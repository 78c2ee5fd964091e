"""Small diffusers folders with random weights: teachers of both backbones, and a CLIP."""

import json
from pathlib import Path


def seed() -> None:
    import torch  # here, as all libraries in this file: tests that need none of them share a conftest that reads it

    torch.manual_seed(0)


def make_teacher(folder: Path, width: int = 32, context: int = 32) -> Path:
    """width: channels of the one-level UNet; context: width of the text encoder (768 is CLIP-L whole). Seeded."""
    from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    seed()
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
    words = make_letters(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=context,
            intermediate_size=4 * context,
            num_hidden_layers=2 if context < 768 else 12,
            num_attention_heads=4 if context < 768 else 12,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=words - 1,
        )
    ).save_pretrained(folder / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    ).save_pretrained(folder / "scheduler")
    return folder


def make_pixart(folder: Path, micro_conditions: bool = False) -> Path:
    """PixArt-alpha in small: two blocks of 24 channels, 4x4 latents, a T5 of one layer and a few words. Seeded."""
    from diffusers import AutoencoderTiny, DDIMScheduler, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    seed()
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
    make_words(folder / "tokenizer")
    size = {"vocab_size": 32, "d_model": 12, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 3}
    T5EncoderModel(T5Config(**size)).save_pretrained(folder / "text_encoder")
    return folder


def make_sdxl(folder: Path, width: int = 32, sizes: int = 4, **changes) -> Path:
    """SDXL in small: two levels, the lower one with two transformer blocks, 4x4 latents, CLIPs of 8 and 12 channels.

    width: channels of the upper level; sizes: channels of each of the six numbers that the UNet is told; changes: of
    the UNet's config. Seeded.
    """
    from diffusers import AutoencoderTiny, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    seed()
    config = {
        "sample_size": 4,
        "block_out_channels": (width, 2 * width),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 20,
        "attention_head_dim": (1, 2),
        "norm_num_groups": 8 if width < 64 else 32,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": sizes,
        "projection_class_embeddings_input_dim": 12 + 6 * sizes,
    }
    UNet2DConditionModel(**config | changes).save_pretrained(folder / "unet")
    AutoencoderTiny(scaling_factor=0.7).save_pretrained(folder / "vae")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    EulerDiscreteScheduler(**betas).save_pretrained(folder / "scheduler")
    layers = {"num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 49408}
    for name, kind, size in (("", CLIPTextModel, 8), ("_2", CLIPTextModelWithProjection, 12)):
        words = make_letters(folder / f"tokenizer{name}")
        ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
        act = "gelu" if name else "quick_gelu"
        text = CLIPTextConfig(
            hidden_size=size, intermediate_size=4 * size, projection_dim=size, hidden_act=act, **layers, **ends
        )
        kind(text).save_pretrained(folder / f"text_encoder{name}")
    return folder


def make_sd3(folder: Path, clip_g: bool = False, t5: bool = False, context: int = 20) -> Path:
    """Stable Diffusion 3.5 in small: two blocks of 24 channels, the first with two attentions, 4x4 latents of 16
    channels, a shift of 3; CLIP-L, with `clip_g` and `t5` the others too. context: width of the text. Seeded."""
    from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    seed()
    size = {"attention_head_dim": 12, "num_attention_heads": 2, "caption_projection_dim": 24, "num_layers": 2}
    text = {"joint_attention_dim": context, "pooled_projection_dim": 16, "qk_norm": "rms_norm"}
    SD3Transformer2DModel(
        sample_size=4, pos_embed_max_size=6, dual_attention_layers=(0,), **size, **text
    ).save_pretrained(folder / "transformer")
    AutoencoderTiny(latent_channels=16, scaling_factor=1.2, shift_factor=0.1).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    layers = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 49408}
    for name, kind, width in (
        ("", CLIPTextModel, 8),
        *((("_2", CLIPTextModelWithProjection, 10),) if clip_g else ()),
    ):
        words = make_letters(folder / f"tokenizer{name}")
        ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
        kind(CLIPTextConfig(hidden_size=width, projection_dim=7, **layers, **ends)).save_pretrained(
            folder / f"text_encoder{name}"
        )
    if t5:
        make_words(folder / "tokenizer_3")
        size = {"vocab_size": 32, "d_model": context, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 3}
        T5EncoderModel(T5Config(**size)).save_pretrained(folder / "text_encoder_3")
    return folder


def make_letters(folder: Path) -> int:
    """CLIP's tokenizer, knowing single letters; returns how many tokens it has, the last two begin and end."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,'"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)
    return len(words)


def make_words(folder: Path) -> None:
    """T5's tokenizer, knowing a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *"a red blue circle square pet ugly blurry".split()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def make_clip(folder: Path, tokenizer: Path) -> Path:
    """A CLIP of two layers for 32 px pictures, with the tokenizer of another folder. Seeded."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    seed()
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": 49408, "bos_token_id": 78, "eos_token_id": 79, "pad_token_id": 79}
    vision = layers | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder
