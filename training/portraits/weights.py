"""The portraits model as committed, and as the checkpoint that ComfyUI loads.

Committed are the transformer and the autoencoder of the file that ``export`` wrote, half precision, and the detector,
with a record of how they were made; the text encoder is drawn again (``shapes/text.py``).
"""

import shutil
from pathlib import Path

import torch

from ..export.families import SD3
from ..export.stable_diffusion import UNET, VAE
from ..export.stable_diffusion3 import TEXT, stable_diffusion3_checkpoint
from ..files import atomic_file
from ..recipe.config import load
from ..shapes import weights as shared
from . import autoencoder, detector, teacher

CONFIG = Path(__file__).parents[1] / "configs" / "portraits.yaml"
FOLDER = Path(__file__).with_name("weights")
PARTS = {"transformer.safetensors": UNET, "autoencoder.safetensors": VAE}
FILES = (*PARTS, detector.FILE)


def commit(exported: Path, found: Path, record: dict, folder: Path = FOLDER) -> None:
    """Split an exported checkpoint into the parts that are committed; add the detector's file and the record."""
    shared.commit(exported, record, folder, PARTS)
    with atomic_file(folder / detector.FILE) as temporary:
        shutil.copyfile(found, temporary)
    shared.write_record(record, folder, FILES)


def read_record(folder: Path = FOLDER) -> dict:
    """How the weights were made and what was measured on them. Raises UserError."""
    return shared.read_record(folder)


def load_detector(folder: Path = FOLDER) -> detector.Detector:
    """The committed detector. Raises UserError."""
    state, _ = shared.read_part(detector.FILE, folder)
    return detector.filled(state)


def random_parts(seed: int = 0) -> dict[str, torch.Tensor]:
    """The same layout with random weights: proves wiring, not quality."""
    torch.manual_seed(seed)
    transformer, vae = teacher.untrained().state_dict(), autoencoder.untrained().state_dict()
    return stable_diffusion3_checkpoint(transformer, vae, {}, *autoencoder.FACTORS)


def write_checkpoint(output: Path, untrained: bool = False, folder: Path = FOLDER) -> Path:
    """The single-file SD 3 checkpoint with CLIP-L alone, half precision. Raises UserError."""
    if untrained:
        state = random_parts()
        described = shared.described_untrained(load(CONFIG), "64x64", family=SD3, prediction="flow-")
    else:
        state, described = shared.read_parts(PARTS, folder)
    return shared.put_together(output, state, described, f"{TEXT['text_encoder']}text_model.")
