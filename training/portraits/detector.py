"""What a portrait shows, read from its pixels alone by a small network that saw nothing but drawings.

It knows no caption, no latent and no model: it is trained on drawings (``drawing.py``) varied in place, size and
colours, blurred, made noisy and mixed with each other, so that it also says when nothing is clear.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..files import atomic_file
from .drawing import PIXELS, draw_variation, paint
from .latent_code import indices
from .world import ATTRIBUTES, draw_items

FILE = "detector.safetensors"
READ = tuple(name for name in ATTRIBUTES if name != "position")
CLEAR = 0.6  # the least probability of a value that is named
DRAWINGS, STEPS, BATCH, LEARNING_RATE = 12000, 2000, 64, 2e-3
MIXED, BLURRED, NOISE = 0.25, 0.4, 0.08  # shares of a batch; the largest deviation of the noise, in 0..1

Reading = dict[str, str | None]  # a value of each attribute of READ; None where none is clear


class Detector(nn.Module):
    """Four convolutions and one linear layer with as many outputs as there are values."""

    def __init__(self):
        super().__init__()
        self.values = [len(ATTRIBUTES[name]) for name in READ]
        layers = []
        for inward, outward in ((3, 24), (24, 32), (32, 48), (48, 64)):
            layers += [nn.Conv2d(inward, outward, 3, 2, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU())
        self.named = nn.Linear(128, sum(self.values))

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Logits [N, values] of each attribute of READ, from pictures float32 [N, 3, 64, 64] in 0..1."""
        return self.named(self.layers(pictures - 0.5)).split(self.values, 1)


def _pixels(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def read(pictures: np.ndarray, detector: Detector) -> list[Reading]:
    """What each picture of uint8 [N, 64, 64, 3] shows.

    Raises ValueError if the array is of another shape or type.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (PIXELS, PIXELS, 3):
        raise ValueError(f"the detector reads uint8 [N, {PIXELS}, {PIXELS}, 3], not {pictures.dtype} {pictures.shape}")
    named = []
    for name, logits in zip(READ, detector(_pixels(pictures)), strict=True):
        sure, index = logits.softmax(1).max(1)
        named.append([ATTRIBUTES[name][i] if p >= CLEAR else None for p, i in zip(sure, index, strict=True)])
    return [dict(zip(READ, row, strict=True)) for row in zip(*named, strict=True)]


def drawings(count: int, seed: int) -> tuple[np.ndarray, list]:
    """Varied drawings uint8 [count, 64, 64, 3] of portraits drawn at random, and what they show."""
    random = np.random.RandomState(seed)
    items = draw_items(random, count)
    return np.stack([paint(item, draw_variation(random)) for item in items]), items


def _spoiled(pictures: Tensor, others: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures mixed with others, blurred and made noisy; and the share of the first in each mixture, [N]."""
    count = len(pictures)
    first = torch.where(torch.rand(count, generator=draws) < MIXED, 0.5 + 0.5 * torch.rand(count, generator=draws), 1.0)
    share = first[:, None, None, None]
    mixed = share * pictures + (1 - share) * others
    blurred = functional.avg_pool2d(functional.pad(mixed, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mixed = torch.where(torch.rand(count, 1, 1, 1, generator=draws) < BLURRED, blurred, mixed)
    noise = NOISE * torch.rand(count, 1, 1, 1, generator=draws)
    return mixed + noise * torch.randn(mixed.shape, generator=draws), first


def train(file: Path) -> Detector:
    """Train the detector and save it as ``file`` (float16), if it is not there already."""
    if not file.exists():
        torch.manual_seed(0)
        pictures, items = drawings(DRAWINGS, seed=1)
        pixels, values = torch.from_numpy(pictures).permute(0, 3, 1, 2), indices(items)
        model, draws = Detector().train(), torch.Generator().manual_seed(2)
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
        for _ in tqdm(range(STEPS), desc="detector", mininterval=10):
            chosen = torch.randint(DRAWINGS, (BATCH,), generator=draws)
            other = torch.randint(DRAWINGS, (BATCH,), generator=draws)
            seen, share = _spoiled(pixels[chosen] / 255, pixels[other] / 255, draws)
            loss = 0
            for name, logits in zip(READ, model(seen), strict=True):
                wrong = functional.cross_entropy(logits, values[name][chosen], reduction="none")
                also = functional.cross_entropy(logits, values[name][other], reduction="none")
                loss = loss + (share * wrong + (1 - share) * also).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            save_file({key: weight.half() for key, weight in model.state_dict().items()}, temporary)
    return load(file)


def load(file: Path) -> Detector:
    """The trained detector."""
    return filled(load_file(file))


def filled(state: dict[str, Tensor]) -> Detector:
    """A detector with these weights."""
    model = Detector().eval().requires_grad_(False)
    model.load_state_dict({key: weight.float() for key, weight in state.items()})
    return model
