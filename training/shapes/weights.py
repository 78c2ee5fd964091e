"""The demo model as committed, and as the checkpoint that ComfyUI loads.

Committed are the UNet and the autoencoder of the file that ``export`` wrote, half precision, with a record of how they
were made; the text encoder is drawn again (``text.py``) when the checkpoint is put together.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError, quoted
from ..export.metadata import model_spec, our_keys
from ..export.stable_diffusion import TEXT, UNET, VAE, stable_diffusion_checkpoint
from ..files import atomic_file
from ..recipe.config import Config, digest, load
from . import autoencoder, teacher, text

CONFIG = Path(__file__).parents[1] / "configs" / "shapes.yaml"
FOLDER = Path(__file__).with_name("weights")
PARTS = {"unet.safetensors": UNET, "autoencoder.safetensors": VAE}
RECORD = "record.json"
REMEDY = "check out the repository anew or run `make demo-model`"


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit(exported: Path, record: dict, folder: Path = FOLDER, parts: dict[str, str] = PARTS) -> None:
    """Split an exported checkpoint into the parts that are committed, and write the record with their digests.

    parts: {file: the prefix of its tensors}.
    """
    with safe_open(exported, "pt") as file:
        described = file.metadata()
        for name, prefix in parts.items():
            part = {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
            with atomic_file(folder / name) as temporary:
                save_file(part, temporary, described)
    write_record(record, folder, parts)


def write_record(record: dict, folder: Path, names: Iterable[str]) -> None:
    """Write the record with the digests of the committed files ``names``."""
    record = record | {"sha256": {name: sha256(folder / name) for name in names}}
    with atomic_file(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def read_record(folder: Path = FOLDER) -> dict:
    """How the weights were made and what was measured on them. Raises UserError."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {quoted(folder / RECORD)} ({quoted(error)}); {REMEDY}.") from None


def read_part(name: str, folder: Path = FOLDER) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of one committed file. Raises UserError if it is missing or not the recorded one."""
    path = folder / name
    try:
        if sha256(path) != read_record(folder)["sha256"][name]:
            raise ValueError("it is not the file that the record describes")
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"Cannot load the demo's weights {quoted(path)}: {quoted(error)}; {REMEDY}.") from None


def random_parts(seed: int = 0) -> dict[str, torch.Tensor]:
    """The same layout with random weights: proves wiring, not quality."""
    torch.manual_seed(seed)
    unet, vae = teacher.untrained().state_dict(), autoencoder.untrained().state_dict()
    return stable_diffusion_checkpoint(unet, vae, {}, autoencoder.SCALING_FACTOR)


def write_checkpoint(output: Path, untrained: bool = False, folder: Path = FOLDER) -> Path:
    """The single-file SD 1.5 checkpoint, half precision. Raises UserError."""
    if untrained:
        state, described = random_parts(), described_untrained(load(CONFIG), "32x32")
    else:
        state, described = read_parts(PARTS, folder)
    return put_together(output, state, described, TEXT)


def described_untrained(config: Config, resolution: str, **told) -> dict[str, str]:
    """Metadata of a checkpoint with random weights; `told` as `export.metadata.our_keys` takes it."""
    keys = our_keys(config.backbone, config.teacher, config.kappa, digest(config), config.start, **told)
    return model_spec("untrained", resolution, "checkpoint", config.start, **told) | keys


def read_parts(names: Iterable[str], folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of several committed files, and the metadata of the last. Raises UserError."""
    state, described = {}, {}
    for name in names:
        part, described = read_part(name, folder)
        state |= part
    return state, described


def put_together(output: Path, state: dict[str, torch.Tensor], described: dict[str, str], text_prefix: str) -> Path:
    """Write a checkpoint, half precision: ``state``, and the text encoder below ``text_prefix``."""
    encoder = text.text_encoder().state_dict()
    state = state | {text_prefix + key.removeprefix("text_model."): weight for key, weight in encoder.items()}
    for key, weight in state.items():
        if weight.ndim and weight.is_floating_point():  # the tiny autoencoder's two scalars stay float32
            weight = weight.half()
        state[key] = weight.contiguous()
    with atomic_file(output) as temporary:
        save_file(state, temporary, described)
    return output
