"""The demo's multi-step teacher: a UNet trained from nothing against the exact denoiser of the drawn world.

A finite world's denoiser is known: given x_t and a caption, E[x0 | x_t, caption] is a softmax over the latents of
the pictures that fit the caption. Regressing to it instead of to the drawn noise takes all variance out of the
target, which is what lets 25M parameters learn on two cores.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from ..method.draws import generator
from . import training_loop
from .latent_code import latents
from .text import encode
from .training_loop import LoopSettings
from .world import CAPTIONS, ITEMS, Caption


@dataclass(frozen=True)
class TeacherSettings(LoopSettings):
    """How the teacher is trained; saved in the record beside the weights."""

    middle_share: float = 0.5  # of the batch at timesteps 350 to 850, where text and noise decide the picture
    weight_cap: float = 60.0  # the weight sigma^2 / alpha^2 makes the loss that of x0; capped at high noise
    weight_floor: float = 0.05
    null_share: float = 0.1  # of the batch with the empty caption
    bare_share: float = 0.15  # ... with a caption of one or two words, such as "red"
    choice_share: float = 0.0  # ... with a caption that leaves a choice, such as "a red or blue circle"


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def untrained() -> UNet2DConditionModel:
    """One level of 320 channels in the SD 1.5 layout, 25.8M parameters."""
    return UNet2DConditionModel(
        sample_size=4,
        layers_per_block=1,
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=768,
        attention_head_dim=8,
    )


KINDS = NULL, BARE, CHOICE, FULL = range(4)


def _kind(caption: Caption) -> int:
    if not caption.text():
        return NULL
    return BARE if caption.bare else CHOICE if " or " in caption.text() else FULL


class World:
    """The latents of the world's pictures, its captions, and which fit which."""

    def __init__(self):
        self.alphas_cumprod = scheduler().alphas_cumprod
        self.latents = latents()  # float32 [480, 4, 4, 4] in the order of ``ITEMS``
        self.fits = torch.tensor([[caption.fits(item) for item in ITEMS] for caption in CAPTIONS])
        # For each picture the captions that fit it, by kind; caption 0 is the empty one.
        kinds = torch.tensor([_kind(caption) for caption in CAPTIONS])
        self._captions = [
            [torch.nonzero(row & (kinds == kind)).flatten().numpy() for kind in KINDS] for row in self.fits.T
        ]

    def draw(self, random: np.random.RandomState, settings: TeacherSettings) -> tuple[torch.Tensor, torch.Tensor]:
        """Picture and caption indices, int64 [batch] each."""
        shares = (settings.null_share, settings.bare_share, settings.choice_share)
        items = random.randint(len(ITEMS), size=settings.batch)
        kinds = random.choice(KINDS, size=settings.batch, p=(*shares, 1 - sum(shares)))
        fitting = [self._captions[item][kind] for item, kind in zip(items, kinds, strict=True)]
        return torch.from_numpy(items), torch.tensor([captions[random.randint(len(captions))] for captions in fitting])

    def denoise(self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, captions: torch.Tensor):
        """E[x0 | x_t = x, caption], float32 [B, 4, 4, 4]; alpha and sigma are [B], captions int64 [B].

        The posterior of picture i is proportional to exp((alpha <x, L_i> - alpha^2 |L_i|^2 / 2) / sigma^2)
        over the pictures that fit.
        """
        flat = self.latents.flatten(1)
        alpha, sigma = alpha[:, None], sigma[:, None]
        logits = (alpha * (x.flatten(1) @ flat.T) - alpha**2 * flat.square().sum(1) / 2) / sigma**2
        logits = logits.masked_fill(~self.fits[captions], -torch.inf)
        return (logits.softmax(1) @ flat).view_as(x)

    def error(self, network, embeddings: torch.Tensor, timestep: int) -> float:
        """Root mean square distance of the network's x0 from the exact one, over one fixed draw of pictures."""
        random, noise = np.random.RandomState(7), torch.Generator().manual_seed(7)
        items, captions = self.draw(random, TeacherSettings())
        batch = NoisedBatch.make(self, items, captions, torch.full_like(items, timestep), noise)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            eps = network(batch.noised, batch.timesteps, embeddings[captions]).sample.float()
        x0 = (batch.noised - batch.sigma * eps) / batch.alpha
        return float((x0 - batch.x0).square().mean().sqrt())


@dataclass(frozen=True)
class NoisedBatch:
    """Noised latents and what the exact denoiser says of them; alpha and sigma are [B, 1, 1, 1]."""

    noised: torch.Tensor
    x0: torch.Tensor
    timesteps: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor

    @classmethod
    def make(cls, world: World, items, captions, timesteps, generator: torch.Generator) -> "NoisedBatch":
        """Noise the pictures ``items`` to ``timesteps`` and denoise them exactly; all indices int64 [B]."""
        cumulative = world.alphas_cumprod[timesteps]
        alpha, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
        wide = (slice(None), None, None, None)
        clean = world.latents[items]
        noised = alpha[wide] * clean + sigma[wide] * torch.randn(clean.shape, generator=generator)
        return cls(noised, world.denoise(noised, alpha, sigma, captions), timesteps, alpha[wide], sigma[wide])


def _timesteps(settings: TeacherSettings, generator: torch.Generator) -> torch.Tensor:
    """Timesteps int64 [batch]: over all noise levels, and a share where the picture is decided."""
    middle = int(settings.middle_share * settings.batch)
    return torch.cat(
        [
            torch.randint(350, 850, (middle,), generator=generator),
            torch.randint(0, 1000, (settings.batch - middle,), generator=generator),
        ]
    )


# First plain captions; then captions with choices too, which a network can only follow if the words for colours (and
# those for shapes) act on each other as opposites. Without these a negative prompt has little to push against.
FIRST = TeacherSettings()
SECOND = TeacherSettings(steps=700, learning_rate=6e-4, warm_up=50, cool_down=0.6, choice_share=0.35, seed=1)


class Lesson:
    """The lesson (``training_loop.py``): the exact denoiser of the drawn world."""

    def __init__(self, settings: TeacherSettings):
        self.settings, self.world = settings, World()
        self.embeddings = encode([caption.text() for caption in CAPTIONS])

    def loss(self, network: UNet2DConditionModel, step: int) -> torch.Tensor:
        """The weighted mean square error in eps."""
        settings = self.settings
        random, noise = np.random.RandomState((settings.seed, step)), generator(settings.seed, step)
        items, captions = self.world.draw(random, settings)
        batch = NoisedBatch.make(self.world, items, captions, _timesteps(settings, noise), noise)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
            eps = network(batch.noised, batch.timesteps, self.embeddings[captions]).sample
        target = (batch.noised - batch.alpha * batch.x0) / batch.sigma
        weight = (batch.sigma / batch.alpha).square().clamp(settings.weight_floor, settings.weight_cap)
        return (weight * (eps.float() - target).square()).mean()

    def errors(self, network: UNet2DConditionModel) -> dict:
        """The distance from the exact x0 at several timesteps."""
        timesteps = (250, 500, 625, 750, 950)
        return {"x0_error": {timestep: self.world.error(network, self.embeddings, timestep) for timestep in timesteps}}


def train(folder: Path, settings: TeacherSettings, start: Path | None = None) -> UNet2DConditionModel:
    """Train into the diffusers folder ``folder``, from nothing or from the network in the folder ``start``.

    Goes on where an earlier run stopped, and loads what is finished. Raises UserError as ``training_loop.train`` does.
    """
    return training_loop.train(
        folder,
        settings,
        lambda: Lesson(settings),
        lambda: UNet2DConditionModel.from_pretrained(start) if start else untrained(),
    )
