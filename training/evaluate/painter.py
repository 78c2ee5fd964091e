"""One variant of a model, as a function from prompts and noises to pictures."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy
import torch
from torch import Tensor

from ..errors import UserError
from ..method.warm_start import ddim_sample
from ..networks.backbones import LatentDiffusion
from ..networks.nasa import add_nasa, nasa_arguments
from ..networks.text import Text
from ..recipe.config import Start
from .prompt_set import Prompt
from .recipe import Variant

KEPT_TEXTS = 64  # encoded; T5 takes 2 MB a text
#: Pictures uint8 [n, height, width, 3] of n prompts.
Painter = Callable[[Sequence[Prompt]], numpy.ndarray]


def make_painter(backbone: LatentDiffusion, start: Start, variant: Variant) -> Painter:
    """`backbone.network` is what draws. Raises UserError where the variant does not fit it."""
    start = start.moved("timestep", variant.timestep, variant.noise)
    if variant.steps == 1 or variant.sampler == "renoise":
        backbone.check_start(start.timestep, start.noise)
        backbone.check_timesteps({"the start of the one step": start.timestep})
    elif variant.steps > len(backbone.alphas):
        raise UserError(f"steps is {variant.steps}; this model has {len(backbone.alphas)} timesteps.")
    if variant.negative == "nasa":
        add_nasa(backbone.network)

    @functools.lru_cache(KEPT_TEXTS)
    def encode(text: str) -> Text:
        return backbone.encode([text])  # alone, so that it rounds the same in every company

    @torch.no_grad()
    def paint(prompts: Sequence[Prompt]) -> numpy.ndarray:
        shape = backbone.latent_shape()
        z = torch.stack([noise_of(variant.seed, prompt.id, shape) for prompt in prompts]).to(backbone.device)
        negatives = [_negative(variant, prompt) for prompt in prompts]
        text, away = (Text.join(*map(encode, texts)) for texts in ([prompt.prompt for prompt in prompts], negatives))
        latents = _latents(backbone, start, variant, prompts, z, text, away)
        if not bool(latents.isfinite().all()):
            raise UserError("The model answers NaN or infinite numbers; what was drawn before is kept.")
        return backbone.decode(latents)

    return paint


def noise_of(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """fp32, drawn on the CPU: the same whoever draws it, and in whatever company."""
    return torch.randn(shape, generator=_generator(seed, name))


def _generator(*parts: object) -> torch.Generator:
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _latents(
    backbone: LatentDiffusion,
    start: Start,
    variant: Variant,
    prompts: Sequence[Prompt],
    z: Tensor,
    text: Text,
    away: Text,
) -> Tensor:
    """x0 [n, c, h, w]. away: the negative prompts, encoded, the empty one for a picture without."""
    strengths = [variant.alpha if _negative(variant, prompt) else 0.0 for prompt in prompts]
    alpha = torch.tensor(strengths, device=z.device)
    arguments = {}
    if variant.negative == "nasa":
        arguments = nasa_arguments(backbone.network, away.embeddings, alpha, away.mask)
    if variant.negative == "embedding":
        text = replace(text, embeddings=text.embeddings - alpha.view(-1, 1, 1) * away.embeddings)

    def predict(x_t: Tensor, t: Tensor, words: Text) -> Tensor:
        return backbone.predict(backbone.network, x_t, t, words, **arguments)

    scale = _scale(variant, prompts, z.device)
    if variant.steps > 1 and variant.sampler == "ddim":
        return ddim_sample(backbone.sampler, predict, z, text, away, variant.steps, scale)

    def one_step(x: Tensor, timestep: int, noise: str) -> Tensor:
        """x0; it is linear in what the network says, so CFG of the one is CFG of the other."""
        x0 = backbone.one_step(backbone.network, x, text, timestep, noise, **arguments)
        if variant.guidance == 1 and variant.guidance_to is None:
            return x0
        other = backbone.one_step(backbone.network, x, away, timestep, noise, **arguments)
        return other + scale * (x0 - other)

    x0 = one_step(z, start.timestep, start.noise)
    later = start.timesteps[1:]  # of a student of several steps; those of a variant are evenly apart
    if variant.steps > 1:
        later = [start.timestep * (variant.steps - number) // variant.steps for number in range(1, variant.steps)]
    for number, timestep in enumerate(later, start=1):
        t = torch.full((len(z),), timestep, device=z.device)
        fresh = [noise_of(variant.seed, f"{prompt.id}\0{number}", z.shape[1:]) for prompt in prompts]
        x0 = one_step(backbone.add_noise(x0, torch.stack(fresh).to(z.device), t), timestep, "unit")
    return x0


def _negative(variant: Variant, prompt: Prompt) -> str:
    """What goes where the negative prompt goes; the empty one is CFG's null prompt."""
    if variant.negative == "none":
        return ""
    return variant.negative_prompt or prompt.negative


def _scale(variant: Variant, prompts: Sequence[Prompt], device: torch.device) -> Tensor | float:
    if variant.guidance_to is None:
        return float(variant.guidance)
    drawn = [torch.rand((), generator=_generator(variant.seed, prompt.id, "guidance")) for prompt in prompts]
    width = variant.guidance_to - variant.guidance
    return (variant.guidance + width * torch.stack(drawn)).view(-1, 1, 1, 1).to(device)
