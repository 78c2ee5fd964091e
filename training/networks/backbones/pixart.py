"""PixArt-alpha: a diffusion transformer that cross-attends to T5, read with its mask."""

from functools import cached_property
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from ...errors import UserError, quoted
from ..text import Text, TextShape
from .latent_diffusion import LatentDiffusion
from .sources import fill, load_network, load_part, load_tokenizer, read_tensors

TOKENS = 120  # PixArt-alpha's own prompt length
XL = {
    "sample_size": 64,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "patch_size": 2,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}


class PixArt(LatentDiffusion):
    """T5 is loaded when the first prompt is encoded, so a run that reads encoded prompts never holds it."""

    folder, network_class = "transformer", PixArtTransformer2DModel
    class_names = ("PixArtTransformer2DModel", "Transformer2DModel")  # the second in PixArt's own older folders
    known = {
        "PixArt-alpha/PixArt-XL-2-512x512": XL,
        "PixArt-alpha/PixArt-XL-2-1024-MS": XL | {"sample_size": 128},
    }

    def load_text(self) -> None:
        config = load_part(T5Config.from_pretrained, self.parts, "text_encoder")
        self.tokenizer = load_tokenizer(AutoTokenizer, self.parts, "tokenizer")
        self.check_text(config.d_model, self.network.config.caption_channels, config.vocab_size)

    @cached_property
    def text_encoder(self) -> T5EncoderModel:
        """T5, in bf16 on a GPU (8.9 GiB for T5-XXL), else in fp32."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        encoder = load_network(T5EncoderModel, self.parts, "text_encoder", dtype=dtype)
        return encoder.requires_grad_(False).eval().to(self.device)

    @property
    def multiple(self) -> int:
        return self.network.config.patch_size

    @property
    def text_shape(self) -> TextShape:
        return TextShape(TOKENS, self.network.config.caption_channels, masked=True)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Text:
        """T5's last hidden state of the prompts in lower case (as PixArt's own pipeline), with the mask."""
        lower = [prompt.lower().strip() for prompt in prompts]
        tokens = self.tokenizer(lower, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return Text(self.text_encoder(ids, attention_mask=mask)[0].float(), mask)

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor, text: Text, **arguments: Any) -> Tensor:
        """eps: the first half of the channels where the network learned sigma too."""
        count, channels, height, width = x_t.shape
        resolution = aspect_ratio = None
        if self.micro_conditions:  # the picture's size in pixels, and height over width
            resolution = x_t.new_tensor([[8.0 * height, 8.0 * width]]).expand(count, -1)
            aspect_ratio = x_t.new_tensor([[height / width]]).expand(count, -1)
        said = network(
            x_t,
            encoder_hidden_states=text.embeddings,
            encoder_attention_mask=text.mask,
            timestep=t,
            added_cond_kwargs={"resolution": resolution, "aspect_ratio": aspect_ratio},
            return_dict=False,
            **arguments,
        )[0]
        return said[:, :channels].float()

    @property
    def micro_conditions(self) -> bool:
        """Whether size and aspect ratio are inputs: PixArt-alpha at 1024 px has them, at 512 px not."""
        return self.network.use_additional_conditions

    def read_single_file(self, path: str, network: nn.Module) -> nn.Module:
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in read_tensors(path).items()}
        if "proj_out.weight" not in tensors:
            raise UserError(
                f"{quoted(path)} is not in diffusers' PixArt layout (no proj_out.weight); give a diffusers folder."
            )
        if not network.use_additional_conditions:  # ComfyUI's files for 512 px carry them as zeros
            unused = ("adaln_single.emb.resolution_embedder.", "adaln_single.emb.aspect_ratio_embedder.")
            tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(unused)}
        return fill(network, lambda: tensors, path)


BACKBONE = PixArt
