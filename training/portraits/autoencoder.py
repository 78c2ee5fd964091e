"""The portraits' autoencoder, in the layout of TAESD for Stable Diffusion 3: it reads and writes the world's code.

It is trained at half of TAESD's width, a quarter of the work, and then filled up with zeros.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..shapes.autoencoder import fitting, update
from .drawing import paint
from .latent_code import CHANNELS, PATTERNS, SHARES, indices, latents
from .world import draw_items

PICTURES, BATCH, READING_BATCH, LEARNING_RATE = 6000, 16, 64, 2e-3
READING_STEPS, DECODER_STEPS, ENCODER_STEPS = 2000, 1800, 500
LATENT_NOISE = 0.3  # deviation of the noise that the decoder must see through, at most
OFF_CODE = 3.5  # ... and of that among the patterns of the code, where a student errs by a quarter of a value's length
PICTURE_NOISE = 0.05  # ... and of that on the pictures that the encoder reads, in -1..1
WIDTH, NARROW = 64, 32
ALL_PATTERNS = torch.cat(list(PATTERNS.values()))  # [18, 1024]
COORDINATES = torch.cat([patterns / SHARES[name] ** 0.5 for name, patterns in PATTERNS.items()])
FACTORS = 1.0, 0.0  # diffusers' scaling_factor and shift_factor: the network sees the latents as they are


def untrained(width: int = WIDTH) -> AutoencoderTiny:
    """64 x 64 pixels become 8 x 8 latents of 16 channels, as the network sees them."""
    return AutoencoderTiny(
        latent_channels=CHANNELS,
        scaling_factor=FACTORS[0],
        shift_factor=FACTORS[1],
        force_upcast=False,
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
    )


def widened(narrow: AutoencoderTiny) -> AutoencoderTiny:
    """The same autoencoder at TAESD's width: the channels that it lacks are zero throughout."""
    wide, state = untrained(), narrow.state_dict()
    for key, weight in wide.state_dict().items():
        weight.zero_()
        weight[tuple(slice(size) for size in state[key].shape)] = state[key]
    return wide


def _drawn() -> tuple[Tensor, Tensor]:
    """Portraits, uint8 [PICTURES, 3, 64, 64], and their latents."""
    items = draw_items(np.random.RandomState(11), PICTURES)
    pictures = torch.from_numpy(np.stack([paint(item) for item in tqdm(items, desc="drawing", mininterval=10)]))
    return pictures.permute(0, 3, 1, 2), latents(indices(items))


class _Reading:
    """The decoder's layers before it first grows, and what every one of their 8 x 8 places is asked for besides: the
    code's 18 coordinates. Pixels alone hardly teach them glasses, beards and moods, whose waves change their sign from
    place to place."""

    def __init__(self, model: AutoencoderTiny):
        self.layers = model.decoder.layers[:5]
        self.head = torch.nn.Conv2d(NARROW, len(COORDINATES), 1)
        self.weights = [*self.layers.parameters(), *self.head.parameters()]

    def loss(self, noisy: Tensor, codes: Tensor) -> Tensor:
        """Mean square error of the coordinates, each as a share of its attribute's length."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = self.head(self.layers(3 * torch.tanh(noisy / 3))).float()
        return (found - (codes.flatten(1) @ COORDINATES.T)[..., None, None]).square().mean((0, 2, 3)).sum()


def _noisy(codes: Tensor) -> Tensor:
    """Codes that are off as a student's are, partly between two values."""
    off = OFF_CODE * torch.rand(len(codes), 1) * torch.randn(len(codes), len(ALL_PATTERNS)) @ ALL_PATTERNS
    return codes + off.view_as(codes) + LATENT_NOISE * torch.rand(len(codes), 1, 1, 1) * torch.randn_like(codes)


def _train_decoder(model: AutoencoderTiny, pictures: Tensor, codes: Tensor) -> None:
    """First what a code says, then to draw it."""
    reading = _Reading(model)
    optimizer, schedule = fitting(reading.weights, READING_STEPS, LEARNING_RATE)
    for _ in tqdm(range(READING_STEPS), desc="reading", mininterval=10):
        code = codes[torch.randint(len(codes), (READING_BATCH,))]
        update(reading.loss(_noisy(code), code), reading.weights, optimizer, schedule)
    weights = [*model.decoder.parameters(), *reading.head.parameters()]
    optimizer, schedule = fitting(weights, DECODER_STEPS, LEARNING_RATE)
    for _ in tqdm(range(DECODER_STEPS), desc="decoder", mininterval=10):
        chosen = torch.randint(len(pictures), (BATCH,))
        code, picture = codes[chosen], pictures[chosen] / 127.5 - 1
        noisy = _noisy(code)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = model.decode(noisy).sample.float()
        drawn = functional.mse_loss(decoded, picture) + functional.l1_loss(decoded, picture)
        update(drawn + 0.1 * reading.loss(noisy, code), weights, optimizer, schedule)


def _train_encoder(model: AutoencoderTiny, pictures: Tensor, codes: Tensor) -> None:
    optimizer, schedule = fitting(model.encoder.parameters(), ENCODER_STEPS, LEARNING_RATE)
    for _ in tqdm(range(ENCODER_STEPS), desc="encoder", mininterval=10):
        chosen = torch.randint(len(pictures), (BATCH,))
        picture = pictures[chosen] / 127.5 - 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = model.encode(picture + PICTURE_NOISE * torch.randn_like(picture)).latents.float()
        update(functional.mse_loss(encoded, codes[chosen]), model.encoder.parameters(), optimizer, schedule)


def train(folder: Path) -> AutoencoderTiny:
    """Train decoder and encoder into ``folder`` (a diffusers folder), each only if it is not there already."""
    first = folder.with_name(folder.name + "-first")
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        pictures, codes = _drawn()
        model = AutoencoderTiny.from_pretrained(first) if (first / "config.json").exists() else untrained(NARROW)
        if not (first / "config.json").exists():
            _train_decoder(model.train(), pictures, codes)
            model.save_pretrained(first)
        _train_encoder(model.train(), pictures, codes)
        widened(model).save_pretrained(folder)
    return AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)
