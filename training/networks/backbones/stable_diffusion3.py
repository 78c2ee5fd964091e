"""Stable Diffusion 3 and 3.5, of any width and depth: a flow model whose image and text share their attention.

    x_t = (1 - t) x0 + t eps,  the network says eps - x0,  t = timestep / 1000

Text is what ComfyUI gives such a model: of each CLIP the hidden state before the last, side by side; behind them T5's
77 tokens, all padded to one width; and the pooled vectors of the CLIPs, side by side. A folder may have CLIP-L alone,
CLIP-L and CLIP-G, and either with T5: what is not there takes no tokens, and zeros in the pooled vector.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from diffusers.loaders import single_file_utils
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from ...errors import UserError, quoted
from ..text import Text, TextShape
from .flow_schedule import TIMESTEPS, read_flow_schedule
from .latent_diffusion import LatentDiffusion
from .sources import fill, load_any, load_network, load_part, load_tokenizer, read_tensors

TOKENS = 77  # of CLIP, and of T5 as SD 3's own code and ComfyUI pad it
#: {folder: what is in it}; the tokenizer of text_encoder_2 is in tokenizer_2, and so on.
ENCODERS = {"text_encoder": "CLIP-L", "text_encoder_2": "CLIP-G", "text_encoder_3": "T5"}
T5 = "text_encoder_3"
PREFIX = "model.diffusion_model."  # of the transformer in a whole checkpoint
LEAST = 20  # thousandths of t below which a start is all but a finished picture

SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
SD35_LARGE = SD3 | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
SD35_MEDIUM = SD3 | {
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}


class StableDiffusion3(LatentDiffusion):
    """Text encoders are loaded when the first prompt is encoded, so a run that reads encoded prompts never holds them.

    text_encoder: those of the folder, by their folders' names. tokenizer: CLIP-L's.
    """

    folder, network_class, class_names = "transformer", SD3Transformer2DModel, ("SD3Transformer2DModel",)
    known = {
        "stabilityai/stable-diffusion-3.5-medium": SD35_MEDIUM,
        "stabilityai/stable-diffusion-3.5-large": SD35_LARGE,
        "stabilityai/stable-diffusion-3-medium-diffusers": SD3,
    }
    noises = ("vp",)
    configs: dict[str, CLIPTextConfig | T5Config] = {}  # of the text encoders that there are

    def load_schedule(self, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
        self.sampler, self.prediction_type = read_flow_schedule(config, self.source), "flow-"
        t = torch.arange(TIMESTEPS) / TIMESTEPS
        return 1 - t, t

    def load_text(self) -> None:
        self.configs, self.tokenizers = {}, {}
        for folder in self._encoders():
            kind, reader = (T5Config, AutoTokenizer) if folder == T5 else (CLIPTextConfig, CLIPTokenizer)
            self.configs[folder] = load_part(kind.from_pretrained, self.parts, folder)
            self.tokenizers[folder] = load_tokenizer(reader, self.parts, folder.replace("text_encoder", "tokenizer"))
            self.check_vocabulary(self.tokenizers[folder], self.configs[folder].vocab_size)
        self.tokenizer = self.tokenizers["text_encoder"]
        network, clips = self.network.config, [config for folder, config in self.configs.items() if folder != T5]
        hidden, pooled = sum(config.hidden_size for config in clips), sum(map(_pooled_width, clips))
        if T5 in self.configs:
            known = self.configs["text_encoder"].vocab_size
            self.check_text(self.configs[T5].d_model, network.joint_attention_dim, known)
        if hidden > network.joint_attention_dim or pooled > network.pooled_projection_dim:
            raise UserError(
                f"{quoted(self.source)}: its CLIPs are {hidden} wide together, their pooled vectors {pooled}; the "
                f"transformer takes at most {quoted(network.joint_attention_dim)} and "
                f"{quoted(network.pooled_projection_dim)}: they are no pair."
            )

    def _encoders(self) -> list[str]:
        """The text encoders that model_index.json names, or, without that file, that are there. Raises UserError."""
        root = Path(self.parts)
        if root.is_dir() and not (root / "model_index.json").is_file():
            named = [folder for folder in ENCODERS if (root / folder).is_dir()]
        else:
            index = load_any(DiffusionPipeline.load_config, self.parts, "model_index.json of the teacher")
            named = [folder for folder in ENCODERS if (index.get(folder) or [None])[0]]
            if missing := [folder for folder in named if root.is_dir() and not (root / folder).is_dir()]:
                raise UserError(
                    f"The teacher {quoted(self.parts)} has no folder {missing[0]}/, though its model_index.json names "
                    f"that text encoder ({ENCODERS[missing[0]]}); copy the folder, or write [null, null] there to "
                    f"train without it."
                )
        if "text_encoder" not in named:
            raise UserError(
                f"The teacher {quoted(self.parts)} has no CLIP-L (text_encoder/), which this backbone needs; copy that "
                f"folder and tokenizer/ from its base model."
            )
        return named

    @cached_property
    def text_encoder(self) -> nn.ModuleDict:
        """CLIPs in fp32; T5 in bf16 on a GPU (8.9 GiB for T5-XXL), else in fp32."""
        found = {}
        for folder, config in self.configs.items():
            if folder == T5:
                dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
                found[folder] = load_network(T5EncoderModel, self.parts, folder, dtype=dtype)
            else:
                kind = CLIPTextModelWithProjection if _projects(config) else CLIPTextModel
                found[folder] = load_network(kind, self.parts, folder).float()
        return nn.ModuleDict(found).requires_grad_(False).eval().to(self.device)

    @property
    def multiple(self) -> int:
        return self.network.config.patch_size

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        channels, height, width = super().latent_shape(size)
        if max(height, width) > (most := self.network.config.pos_embed_max_size * self.multiple):
            raise UserError(f"latent_size is {[height, width]}; the positions of this network end at {most}.")
        return channels, height, width

    @property
    def text_shape(self) -> TextShape:
        """As wide as the network takes; `encode` gives CLIP's own width where there is no T5."""
        config, with_t5 = self.network.config, not self.configs or T5 in self.configs
        return TextShape(TOKENS * (1 + with_t5), config.joint_attention_dim, pooled=config.pooled_projection_dim)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Text:
        """Embeddings [n, 77, widths of the CLIPs], with T5 [n, 154, the network's width]; pooled [n, widths]."""
        hidden, pooled, t5 = [], [], None
        for folder, encoder in self.text_encoder.items():
            options = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
            ids = self.tokenizers[folder](prompts, **options).input_ids.to(self.device)
            if folder == T5:
                t5 = encoder(ids)[0].float()
                continue
            read = encoder(ids, output_hidden_states=True)
            hidden.append(read.hidden_states[-2].float())
            pooled.append((read.text_embeds if _projects(encoder.config) else read.pooler_output).float())
        embeddings = torch.cat(hidden, dim=-1)
        if t5 is not None:
            embeddings = torch.cat([_padded(embeddings, t5.shape[-1]), t5], dim=1)
        return Text(embeddings, pooled=torch.cat(pooled, dim=-1))

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor, text: Text, **arguments: Any) -> Tensor:
        """eps - x0."""
        config = self.network.config
        return network(
            x_t,
            encoder_hidden_states=_padded(text.embeddings, config.joint_attention_dim),
            pooled_projections=_padded(text.pooled, config.pooled_projection_dim),
            timestep=t,
            return_dict=False,
            **arguments,
        )[0].float()

    def read_single_file(self, path: str, network: nn.Module) -> nn.Module:
        """The transformer alone, in the original layout or in diffusers' names; all else comes from `parts`."""
        tensors = read_tensors(path)
        if "context_embedder.weight" in tensors and "proj_out.weight" in tensors:
            return fill(network, lambda: tensors, path)
        prefix = PREFIX if any(key.startswith(PREFIX) for key in tensors) else ""
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if "joint_blocks.0.context_block.attn.qkv.weight" not in own:
            raise UserError(f"{quoted(path)} holds no Stable Diffusion 3 transformer; give another file.")
        return fill(network, lambda: single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(own), path)

    @classmethod
    def check_start(cls, timestep: int, noise: str) -> None:
        if noise != "vp":
            raise UserError(
                f"start.noise is {noise}; a flow model's first input is t times the noise, as every sampler feeds it: "
                f"write `start: {{timestep: {timestep}, noise: vp}}`."
            )
        if timestep < LEAST:
            raise UserError(
                f"start.timestep is {timestep}; of a flow model it counts thousandths of t, so that is t = "
                f"{timestep / TIMESTEPS:g}, where hardly any noise is left: write 720, say, for t = 0.72."
            )


def _projects(config: CLIPTextConfig) -> bool:
    """Whether the pooled vector goes through a projection: CLIP-G's does, CLIP-L's is the identity or not there."""
    return (config.architectures or [""])[0] == "CLIPTextModelWithProjection"


def _pooled_width(config: CLIPTextConfig) -> int:
    return config.projection_dim if _projects(config) else config.hidden_size


def _padded(x: Tensor, width: int) -> Tensor:
    """[..., width], zeros behind."""
    return pad(x, (0, width - x.shape[-1]))


BACKBONE = StableDiffusion3
