"""Makes the same picture without and with a negative prompt of several strengths."""

import comfy.model_management
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ..guidance.kept import kept_for_clones
from ..guidance.payload import AUTO, patch
from ..sampling.one_step import sample


def sweep(
    model: ModelPatcher, sampled: ModelPatcher, sigmas: torch.Tensor, positive: list, negative: list,
    acting: list, latent: dict, vae: VAE, seed: int, alphas: list[float],
) -> list[torch.Tensor]:  # fmt: skip
    """The pictures without the negative prompt and then with it, one for each of `alphas`, from the same noise.

    The weights stay loaded from the first picture to the last, and what the model makes of the negative prompt is
    kept. All latents come first: model and autoencoder take turns on the device once.

    Args:
        model: what the user loaded.
        sampled, sigmas: of `sampling.one_step.steps`.
        acting: the entries of `negative` that act.

    Returns:
        [batch, height, width, 3] each, 0 to 1.

    Raises:
        ValueError: the model or the negative is unusable; before any sampling.
    """
    kept = kept_for_clones(model, negative)
    models = [patch(sampled, negative, alpha, kept=kept, acting=acting, rule=AUTO) for alpha in (0.0, *alphas)]
    count = len(sigmas) - 1
    report = latent_preview.prepare_callback(sampled, count * len(models))
    latents = []
    for number, steered in enumerate(models):
        comfy.model_management.throw_exception_if_processing_interrupted()

        def callback(step, x0, x, _, done=number * count):
            report(done + step, x0, x, count * len(models))

        latents.append(sample(steered, sigmas, positive, latent, seed, callback)["samples"])
    pictures = []
    for samples in latents:
        comfy.model_management.throw_exception_if_processing_interrupted()
        decoded = vae.decode(samples)
        pictures.append(decoded.reshape(-1, *decoded.shape[-3:]))  # an autoencoder of videos gives frames
    return pictures
