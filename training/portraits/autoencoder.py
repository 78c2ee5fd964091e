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
from .latent_code import CHANNELS, PATTERNS, indices, latents
from .world import draw_items

PICTURES, BATCH, LEARNING_RATE = 6000, 16, 2e-3
DECODER_STEPS, ENCODER_STEPS = 2500, 500
LATENT_NOISE = 0.3  # deviation of the noise that the decoder must see through, at most
OFF_CODE = 1.5  # ... and of that among the patterns of the code, where a student errs
PICTURE_NOISE = 0.05  # ... and of that on the pictures that the encoder reads, in -1..1
WIDTH, NARROW = 64, 32
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


def _train_decoder(model: AutoencoderTiny, pictures: Tensor, codes: Tensor) -> None:
    patterns = torch.cat(list(PATTERNS.values()))
    optimizer, schedule = fitting(model.decoder.parameters(), DECODER_STEPS, LEARNING_RATE)
    for _ in tqdm(range(DECODER_STEPS), desc="decoder", mininterval=10):
        chosen = torch.randint(len(pictures), (BATCH,))
        code, picture = codes[chosen], pictures[chosen] / 127.5 - 1
        off = OFF_CODE * torch.rand(BATCH, 1) * torch.randn(BATCH, len(patterns)) @ patterns
        noise = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(code)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = model.decode(code + off.view_as(code) + noise).sample.float()
        loss = functional.mse_loss(decoded, picture) + functional.l1_loss(decoded, picture)
        update(loss, model.decoder.parameters(), optimizer, schedule)


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
