"""Stable Diffusion's family: an eps UNet of any width and depth, a latent autoencoder, one CLIP text encoder."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..errors import UserError

VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class StableDiffusion:
    """All parts of a teacher, in fp32, frozen, on one device.

    alphas, sigmas: fp32 [timesteps], x_t = alphas[t] x0 + sigmas[t] eps, from the schedule itself.
    """

    def __init__(self, source: str, device: torch.device | str = "cpu"):
        """`source`: diffusers folder or hub name. Raises UserError if a part is missing, damaged, or predicts v."""
        self.source = source
        config = _part(DDIMScheduler.load_config, source, "scheduler")
        prediction = config.get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise UserError(f"The teacher {source} predicts {prediction}; PG-SB here needs one that predicts epsilon.")
        # Trailing spacing starts at the last timestep, where the noise that goes in is the noise of the schedule.
        self.sampler: DDIMScheduler = DDIMScheduler.from_config(
            config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, thresholding=False
        )
        self.unet: UNet2DConditionModel = _part(UNet2DConditionModel.from_pretrained, source, "unet")
        vae_class = VAES.get(_part(UNet2DConditionModel.load_config, source, "vae").get("_class_name", ""))
        if vae_class is None:
            raise UserError(f"The autoencoder in {source}/vae must be one of {', '.join(VAES)}.")
        self.vae: AutoencoderKL | AutoencoderTiny = _part(vae_class.from_pretrained, source, "vae")
        self.text_encoder: CLIPTextModel = _part(CLIPTextModel.from_pretrained, source, "text_encoder")
        self.tokenizer: CLIPTokenizer = _part(CLIPTokenizer.from_pretrained, source, "tokenizer")
        width, wanted = self.text_encoder.config.hidden_size, self.unet.config.cross_attention_dim
        if width != wanted:
            raise UserError(f"{source}: the text encoder is {width} wide, the UNet wants {wanted}; they are no pair.")
        if len(self.tokenizer) > self.text_encoder.config.vocab_size:
            raise UserError(
                f"{source}: the tokenizer knows {len(self.tokenizer)} tokens, the text encoder only "
                f"{self.text_encoder.config.vocab_size}; they are no pair."
            )
        self.device = torch.device(device)
        for network in (self.unet, self.vae, self.text_encoder):
            network.requires_grad_(False).eval().to(self.device)
        cumulative = self.sampler.alphas_cumprod.double()
        self.alphas = cumulative.sqrt().float().to(self.device)
        self.sigmas = (1 - cumulative).sqrt().float().to(self.device)

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(channels, height, width), height and width from the UNet unless given."""
        own = self.unet.config.sample_size
        height, width = size or ((own, own) if isinstance(own, int) else own)
        divisor = 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % divisor or width % divisor:
            raise UserError(f"latent_size is {[height, width]}; this UNet needs multiples of {divisor}.")
        return self.unet.config.in_channels, height, width

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """CLIP's last hidden state, padded to the full length as in pretraining: fp32 [n, tokens, width]."""
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state.float()

    @staticmethod
    def predict(network: nn.Module, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """eps fp32 [n, c, h, w] by `network`: the student or either teacher. t [n] int64, text [n, tokens, width]."""
        return network(x_t, t, encoder_hidden_states=text, return_dict=False)[0].float()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, fp32 [n, 1, 1, 1]."""
        return self.alphas[t].view(-1, 1, 1, 1), self.sigmas[t].view(-1, 1, 1, 1)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t noise, fp32."""
        alpha, sigma = self.coefficients(t)
        return alpha * x0.float() + sigma * noise.float()

    def one_step(
        self, network: nn.Module, z: Tensor, text: Tensor, timestep: int, noise: Literal["unit", "vp"]
    ) -> Tensor:
        """x0 = (x - sigma_t eps(x, t)) / alpha_t in fp32, with x = z (unit) or sigma_t z (vp).

        Where t is the last one, 1 / alpha_t is 14.6 for SD: rounding eps to bf16 alone costs .024 RMS.
        """
        t = torch.full((len(z),), timestep, dtype=torch.long, device=z.device)
        alpha, sigma = self.coefficients(t)
        x = z.float() if noise == "unit" else sigma * z.float()
        return (x - sigma * self.predict(network, x, t, text)) / alpha

    @torch.no_grad()
    def decode(self, latents: Tensor) -> numpy.ndarray:
        """Latents [n, c, h, w] (scaled as the UNet sees them) to uint8 [n, height, width, 3]."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scaled = (latents.float() / self.vae.config.scaling_factor + shift).split(16)
        pictures = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in scaled])
        pictures = (pictures / 2 + 0.5).nan_to_num(0.5).clamp(0, 1)
        return (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _part(load: Any, source: str, folder: str) -> Any:
    """One part of the teacher; whatever its reader raises becomes a sentence."""
    local = Path(source)
    if local.exists() and not (local / folder).is_dir():
        raise UserError(
            f"The teacher {source} has no folder {folder}/; give a diffusers folder, as save_pretrained writes."
        )
    try:
        return load(source, subfolder=folder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
    except Exception as error:  # safetensors' own error has no better base
        reason = f"{type(error).__name__}: {error}"
    remedy = (
        "a file is damaged or missing, copy it again" if local.exists() else "no such folder, nor a model on the hub"
    )
    raise UserError(f"Cannot load {folder} of the teacher {source}: {remedy} ({reason}).")
