"""CLIP's opinion of decoded pictures, for the clamped CLIP loss."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from ..networks.backbones import LatentDiffusion
from ..networks.backbones.latent_diffusion import pictures_of
from ..networks.backbones.sources import load_model, load_tokenizer
from ..recipe.config import Clip

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's pretraining


class ClipEmbeddings:
    """A frozen CLIP and a frozen decoder; gradients reach the latents through both."""

    def __init__(self, settings: Clip, backbone: LatentDiffusion):
        """Raises UserError if the model or the decoder cannot be loaded."""
        self.model: CLIPModel = load_model(CLIPModel, settings.model, "clip.model").float()
        self.tokenizer = load_tokenizer(AutoTokenizer, settings.model, role="clip.model")
        self.one_in = settings.one_in
        self.decoder: AutoencoderKL | AutoencoderTiny = backbone.vae
        if settings.decoder is not None:
            self.decoder = load_model(AutoencoderTiny, settings.decoder, "clip.decoder").float()
        for network in (self.model, self.decoder):
            network.requires_grad_(False).eval().to(backbone.device)
        self.mean, self.deviation = (
            torch.tensor(values, device=backbone.device).view(1, 3, 1, 1) for values in (MEAN, DEVIATION)
        )

    def __call__(self, x0: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings fp32 [n, width] of the pictures that latents x0 [n, c, h, w] decode to, and of their prompts."""
        pictures = (pictures_of(self.decoder, x0).float() / 2 + 0.5).clamp(0, 1)  # as it was trained, and as saved
        side = self.model.config.vision_config.image_size
        resized = torch.nn.functional.interpolate(pictures, (side, side), mode="bicubic", antialias=True)
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        seen = self.model.vision_model(pixel_values=(resized - self.mean) / self.deviation).pooler_output
        with torch.no_grad():
            read = self.model.text_model(input_ids=tokens.input_ids.to(x0.device)).pooler_output
        return self.model.visual_projection(seen).float(), self.model.text_projection(read).float()
