"""Features of pictures, kept on disk in parts, so that a long extraction goes on where it stopped.

CACHE/<key>-00000.safetensors     fp32 [up to 512, width]; the key is of the pictures' contents and of the network
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_file
from .feature_networks import Network, load_network
from .pictures import Pictures

PART, BATCH = 512, 16


class Features:
    """Networks and what they saw. weights: the folder of their files."""

    def __init__(self, cache: Path, weights: Path):
        self.cache, self.weights = cache, weights
        self.networks: dict[tuple[str, str | None], Network] = {}

    def network(self, name: str, sha256: str | None = None) -> Any:
        """Raises UserError."""
        if (name, sha256) not in self.networks:
            self.networks[name, sha256] = load_network(name, self.weights, sha256)
        return self.networks[name, sha256]

    def of(self, pictures: Pictures, name: str, sha256: str | None = None) -> Tensor:
        """fp32 [pictures, width], with progress. Raises UserError."""
        network = self.network(name, sha256)
        described = json.dumps([pictures.digest, network.described], sort_keys=True)
        key = hashlib.sha256(described.encode()).hexdigest()[:32]
        parts = []
        shown = {"unit": "picture", "desc": f"{name} on {pictures.folder.name}", "dynamic_ncols": True}
        with tqdm(total=len(pictures), **shown) as bar:
            for first in range(0, len(pictures), PART):
                count = min(PART, len(pictures) - first)
                path = self.cache / f"{key}-{first // PART:05d}.safetensors"
                parts.append(_kept(path, pictures, network, range(first, first + count), bar))
        return torch.cat(parts)


def _stack(pictures: Pictures, places: range) -> numpy.ndarray:
    return numpy.stack(pictures.read(places))


def _kept(path: Path, pictures: Pictures, network: Network, places: range, bar: tqdm) -> Tensor:
    """What the network sees in these pictures; read from the file, or looked at now and written there."""
    if (kept := _read(path, len(places))) is not None:
        bar.update(len(places))
        return kept
    seen = []
    for start in range(0, len(places), BATCH):
        seen.append(network.pictures(_stack(pictures, places[start : start + BATCH])))
        bar.update(len(places[start : start + BATCH]))
    features = torch.cat(seen).contiguous()
    with atomic_file(path) as temporary:
        safetensors.torch.save_file({"features": features}, temporary)
    return features


def _read(path: Path, count: int) -> Tensor | None:
    try:
        features = safetensors.torch.load_file(path)["features"]
        return features if len(features) == count else None
    except (OSError, KeyError, safetensors.SafetensorError):
        return None
