"""The demo's autoencoder, in the TAESD layout, trained to read and write the world's latent code."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional
from tqdm import tqdm

from .latent_code import latents
from .world import ITEMS, paint

LATENT_NOISE = 0.5  # deviation of the noise the decoder must see through, at most
OFF_CODE = 0.75  # ... and, in the second phase, of that among the patterns of the code, where a student errs
PICTURE_NOISE = 0.05  # ... and of that on the pictures the encoder reads, in -1..1
STEPS, DECODER_STEPS, BATCH, LEARNING_RATE = 1000, 1500, 32, 1e-3
SCALING_FACTOR = 1.0  # diffusers' word for what the latents are multiplied by before the UNet sees them


def untrained() -> AutoencoderTiny:
    """The layout of TAESD (2.4M parameters); 32 x 32 pixels become 4 x 4 latents of 4 channels."""
    return AutoencoderTiny(latent_channels=4, scaling_factor=SCALING_FACTOR, force_upcast=False)


def pictures() -> torch.Tensor:
    """All pictures of the world, float32 [480, 3, 32, 32] in -1..1, in the order of ``ITEMS``."""
    pixels = torch.from_numpy(np.stack([paint(item) for item in ITEMS]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def decode(autoencoder: AutoencoderTiny, codes: torch.Tensor) -> np.ndarray:
    """Latents float32 [N, c, h, w] as pictures, uint8 [N, H, W, 3]."""
    decoded = torch.cat([autoencoder.decode(part).sample for part in codes.split(100)])
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def fitting(weights, steps: int, learning_rate: float = LEARNING_RATE):
    """An optimizer of ``weights`` and its schedule over ``steps``."""
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)


def update(loss, weights, optimizer, schedule) -> None:
    """One step down the gradient of ``loss``."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    schedule.step()


def _written(model: AutoencoderTiny, codes: torch.Tensor, pictures: torch.Tensor, absolute: float) -> torch.Tensor:
    """How far the decoded codes are from the pictures."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = model.decode(codes).sample.float()
    return functional.mse_loss(decoded, pictures) + absolute * functional.l1_loss(decoded, pictures)


def train_both(model: AutoencoderTiny, seed: int = 0) -> None:
    """First phase, from nothing: the encoder reads the code off pictures, the decoder writes pictures from it."""
    torch.manual_seed(seed)
    seen, codes, weights = pictures(), latents(), list(model.parameters())
    optimizer, schedule = fitting(weights, STEPS)
    for _ in tqdm(range(STEPS), desc="autoencoder"):
        chosen = torch.randint(len(seen), (BATCH,))
        picture, code = seen[chosen], codes[chosen]
        noise = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(code)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = model.encode(picture + PICTURE_NOISE * torch.randn_like(picture)).latents.float()
        loss = _written(model, code + noise, picture, 0.2) + 0.1 * functional.mse_loss(encoded, code)
        update(loss, weights, optimizer, schedule)


def train_decoder(model: AutoencoderTiny, seed: int = 1) -> None:
    """Second phase: the decoder alone, on codes that are off as a student's are, partly between two values."""
    torch.manual_seed(seed)
    seen, codes, weights = pictures(), latents(), list(model.decoder.parameters())
    patterns = torch.linalg.svd(codes.flatten(1), full_matrices=False)[2][:13]  # orthonormal, [13, 64]
    optimizer, schedule = fitting(weights, DECODER_STEPS)
    for _ in tqdm(range(DECODER_STEPS), desc="decoder"):
        chosen = torch.randint(len(seen), (BATCH,))
        off = OFF_CODE * torch.rand(BATCH, 1) * torch.randn(BATCH, len(patterns)) @ patterns
        noise = 0.2 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(codes[chosen])
        loss = _written(model, codes[chosen] + off.view_as(noise) + noise, seen[chosen], 1.0)
        update(loss, weights, optimizer, schedule)


def train(folder: Path) -> AutoencoderTiny:
    """Train both phases into ``folder`` (a diffusers folder), each only if it is not there already."""
    both = folder.with_name(folder.name + "-first")
    for phase, target, start in ((train_both, both, None), (train_decoder, folder, both)):
        if not (target / "config.json").exists():
            model = AutoencoderTiny.from_pretrained(start) if start else untrained()
            phase(model.train())
            model.save_pretrained(target)
    return AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)
