"""Stable Diffusion XL and what is made from it (Illustrious, Pony, NoobAI), of any width and depth: a UNet that is also
told a pooled text and the size of the picture, and two CLIP text encoders.

A community checkpoint says by two empty tensors, `v_pred` and `ztsnr`, that it predicts v and that its schedule ends in
pure noise; ComfyUI goes by them too. A file without them is read as `teacher_parts` says, by default as epsilon.
"""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...errors import UserError, quoted, quoted_value
from ..text import Text, TextShape
from .sources import fill, is_single_file, load_network, load_part, load_tokenizer, read_tensors
from .stable_diffusion import (
    BLOCKS,
    CONDITIONS,
    IS_REFINER,
    NUMBERS,
    UNET,
    StableDiffusion,
    context_width,
    is_refiner,
    named_alike,
    told_width,
)

TOKENS = 77
ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}  # CLIP-L, OpenCLIP's CLIP-G
#: What an empty tensor of that name says of a checkpoint, in the words of a scheduler_config.json.
MARKS = {"v_pred": {"prediction_type": "v_prediction"}, "ztsnr": {"rescale_betas_zero_snr": True}}
IS_NO_SDXL = (
    "is no SDXL, whose UNet wants pooled text and sizes; for a Stable Diffusion 1.x or 2.x set `backbone: "
    "stable_diffusion`."
)
EDM = ("edm_mean", "edm_vpred.sigma_max")  # Playground 2.5 and its like: no schedule of betas
XL = BLOCKS | {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


class StableDiffusionXL(StableDiffusion):
    """Text encoders are loaded when the first prompt is encoded: a run that reads encoded prompts never holds them."""

    known = {"stabilityai/stable-diffusion-xl-base-1.0": XL}
    conditions = {name: told for name, told in CONDITIONS.items() if name != "addition_embed_type"}
    of_text = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.")

    @classmethod
    def check_config(cls, config: dict[str, Any], source: str) -> None:
        super().check_config(config, source)
        if config.get("addition_embed_type") != "text_time":
            raise UserError(f"The teacher {quoted(source)} {IS_NO_SDXL}")
        told, each = config.get("projection_class_embeddings_input_dim"), config.get("addition_time_embed_dim")
        if not isinstance(told, int) or not isinstance(each, int) or told <= NUMBERS * each:
            raise UserError(
                f"The UNet of the teacher {quoted(source)} has addition_time_embed_dim {quoted_value(each)} and "
                f"projection_class_embeddings_input_dim {quoted_value(told)}; copy its config.json again."
            )
        if is_refiner(told, each, config.get("cross_attention_dim")):
            raise UserError(f"The teacher {quoted(source)} {IS_REFINER}")

    def load_schedule(self, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if is_single_file(self.source):
            names = _names(self.source)
            if edm := next((name for name in EDM if name in names), ""):
                raise UserError(
                    f"{quoted(self.source)} was trained by EDM (it holds `{edm}`), which is no schedule of betas; give "
                    f"an SDXL that predicts epsilon or v."
                )
            for mark, told in MARKS.items():
                config = config | (told if mark in names else {})
        return super().load_schedule(config)

    def load_text(self) -> None:
        self.tokenizers = {
            folder: load_tokenizer(CLIPTokenizer, self.parts, folder.replace("text_encoder", "tokenizer"))
            for folder in ENCODERS
        }
        self.tokenizer = self.tokenizers["text_encoder"]
        self.configs = {folder: load_part(CLIPTextConfig.from_pretrained, self.parts, folder) for folder in ENCODERS}
        for folder, config in self.configs.items():
            self.check_vocabulary(self.tokenizers[folder], config.vocab_size)
        width = sum(config.hidden_size for config in self.configs.values())
        self.check_text(width, self.network.config.cross_attention_dim, self.configs["text_encoder"].vocab_size)
        if (pooled := self.configs["text_encoder_2"].projection_dim) != self.text_shape.pooled:
            raise UserError(
                f"{quoted(self.source)}: the pooled text is {pooled} wide, the {self.folder} wants "
                f"{self.text_shape.pooled}; they are no pair."
            )

    @cached_property
    def text_encoder(self) -> nn.ModuleDict:
        """Both, fp32, by their folders' names; of a single file those that it holds."""
        encoders = {folder: load_network(kind, self.parts, folder).float() for folder, kind in ENCODERS.items()}
        if is_single_file(self.source):
            tensors = read_tensors(self.source)
            for place, (prefix, encoder) in enumerate(zip(self.of_text, encoders.values(), strict=True)):
                convert = _open_clip if place else named_alike
                held = {key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)}
                read = partial(convert, held, encoder) if held else encoder.state_dict
                fill(encoder, read, self.source)
        return nn.ModuleDict(encoders).requires_grad_(False).eval().to(self.device)

    @property
    def text_shape(self) -> TextShape:
        config = self.network.config
        pooled = config.projection_class_embeddings_input_dim - NUMBERS * config.addition_time_embed_dim
        return TextShape(TOKENS, config.cross_attention_dim, pooled=pooled)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Text:
        """Of both encoders the hidden state before the last, side by side, without a mask; pooled is CLIP-G's."""
        hidden = []
        for folder, encoder in self.text_encoder.items():
            options = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
            ids = self.tokenizers[folder](prompts, **options).input_ids.to(self.device)
            read = encoder(ids, output_hidden_states=True)
            hidden.append(read.hidden_states[-2].float())
        return Text(torch.cat(hidden, dim=-1), pooled=read.text_embeds.float())

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor, text: Text, **arguments: Any) -> Tensor:
        """The picture is told to be as large as it is, and not cropped."""
        height, width = (8.0 * side for side in x_t.shape[-2:])
        sizes = x_t.new_tensor([[height, width, 0.0, 0.0, height, width]]).expand(len(x_t), -1)
        told = {"text_embeds": text.pooled, "time_ids": sizes}
        return super().output(network, x_t, t, text, added_cond_kwargs=told, **arguments)

    # --- single files -----------------------------------------------------------------------------------------------
    def check_tensors(self, unet: dict[str, Tensor], config: dict[str, Any], path: str) -> None:
        if (told := told_width(unet)) is None:
            raise UserError(f"The teacher {quoted(path)} {IS_NO_SDXL}")
        if is_refiner(told, config["addition_time_embed_dim"], context_width(unet)):
            raise UserError(f"The teacher {quoted(path)} {IS_REFINER}")

    def read_other_parts(self, path: str) -> None:
        self.read_autoencoder(path, read_tensors(path))


def _names(path: str) -> set[str]:
    """The tensors of a single file, those of a UNet alone without their prefix."""
    try:
        with safetensors.safe_open(Path(path), "pt") as file:
            return {key.removeprefix(UNET) for key in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error)}; the file is missing or damaged.") from None


def _open_clip(tensors: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    found = single_file_utils.convert_open_clip_checkpoint(encoder, tensors, prefix="model.")
    return named_alike(found, encoder)


BACKBONE = StableDiffusionXL
