"""The clamped CLIP loss: CLIP's opinion of decoded pictures, on one sample in so many."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from ..networks.backbones import LatentDiffusion
from ..networks.backbones.latent_diffusion import pictures_of
from ..networks.backbones.sources import load_model, load_tokenizer
from ..recipe.config import Clip
from .batches import Batch
from .losses import clamped_clip_loss, falling_weight

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's pretraining


class ClipEmbeddings:
    """A frozen CLIP and a frozen decoder; gradients reach the latents through both."""

    def __init__(self, settings: Clip, backbone: LatentDiffusion):
        """Raises UserError if the model or the decoder cannot be loaded."""
        self.model: CLIPModel = load_model(CLIPModel, settings.model, "clip.model").float()
        self.tokenizer = load_tokenizer(AutoTokenizer, settings.model, role="clip.model")
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


class ClipLoss:
    """That loss of the whole batch, a part at a time, and its weight, which falls from the first VSD step on."""

    def __init__(
        self,
        embeddings: ClipEmbeddings,
        settings: Clip,
        batch_size: int,
        first_vsd: int,
        steps: int,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.embeddings, self.settings, self.autocast = embeddings, settings, autocast
        self.first_vsd, self.steps = first_vsd, steps
        # The mean over a batch is one over the samples that get the loss, whatever the batch's size.
        self.share = batch_size / len(range(0, batch_size, settings.one_in))

    def weight(self, step: int) -> float:
        """At that step of the run."""
        progress = (step - self.first_vsd, self.steps)
        return falling_weight(self.settings.weight, self.settings.final_weight, *progress)

    def losses(self, x0: Tensor, batch: Batch, rows: slice) -> Tensor:
        """fp32 [n] for the pictures x0 [n, c, h, w] of these rows of a batch; 0 for a sample that does not get it."""
        one_in = self.settings.one_in
        seen = range(-(-rows.start // one_in) * one_in, rows.stop, one_in)
        losses = x0.new_zeros(len(x0))
        if not seen:
            return losses
        shown = torch.tensor([row - rows.start for row in seen], device=x0.device)
        with self.autocast():
            near = self.embeddings(x0[shown], [batch.prompt(row) for row in seen])
        return losses.index_add(0, shown, clamped_clip_loss(*near, self.settings.margin) * self.share)
