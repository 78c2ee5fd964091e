"""What an exported file says of itself: ModelSpec 1.0.1, and our own keys under `snoopi.`."""

import datetime
import hashlib
import json
import os
import re
from pathlib import Path

import yaml

from ..errors import quoted
from ..networks.backbones.sources import is_hub_name
from ..recipe.config import Config, to_dict
from .families import SD1, Family, Layout

NO_HASH = "0x" + "0" * 64
IMPLEMENTATIONS = {
    "checkpoint": "https://github.com/Stability-AI/generative-models",
    "unet": "https://github.com/Stability-AI/generative-models",
    "transformer": "diffusers",
    "lora": "diffusers",
}
MODEL_SPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # it has no word for others
LICENCE_UNKNOWN = "see the licence of the base model"


def metadata(
    config: Config,
    title: str,
    resolution: str,
    family: Family = SD1,
    layout: Layout = "checkpoint",
    prediction: str = "epsilon",
    licence: str = LICENCE_UNKNOWN,
) -> dict[str, str]:
    """Safetensors metadata (strings only). resolution: pixels, "512x512"; prediction: epsilon, v_prediction or flow-.

    `snoopi.start_timestep`, `snoopi.start_noise` and `snoopi.prediction` tell a sampler how the student starts.
    `modelspec.hash_sha256` is zeros until `write_hash` has seen the file.
    """
    described = json.dumps(to_dict(config), sort_keys=True).encode()
    timestep, noise = config.start.timestep, config.start.noise
    return {
        "format": "pt",  # transformers and diffusers ask for it
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture + ("/lora" if layout == "lora" else ""),
        "modelspec.implementation": IMPLEMENTATIONS[layout],
        "modelspec.title": title,
        "modelspec.resolution": resolution,
        "modelspec.description": "One-step text-to-image student, distilled by PG-SB (SNOOPI, arXiv 2412.02687).",
        "modelspec.author": "trained with ComfyUI-SNOOPI",
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "modelspec.hash_sha256": NO_HASH,
        "modelspec.license": licence,
        **({"modelspec.prediction_type": kind} if (kind := MODEL_SPEC_PREDICTIONS.get(prediction)) else {}),
        "modelspec.timestep_range": f"{timestep},{timestep}",
        "modelspec.usage_hint": f"One step from timestep {timestep}, {noise} noise, CFG 1.",
        "snoopi.format": "1",
        "snoopi.backbone": config.backbone,
        "snoopi.preset": family.preset,
        "snoopi.start_timestep": str(timestep),
        **({} if prediction == "flow-" else {"snoopi.start_noise": noise}),  # a flow model has no choice
        "snoopi.prediction": prediction,
        "snoopi.kappa_min": str(config.kappa[0]),
        "snoopi.kappa_max": str(config.kappa[1]),
        "snoopi.alpha": str(family.alpha),
        "snoopi.config_sha256": hashlib.sha256(described).hexdigest(),
        "snoopi.base_model": public_name(config.teacher),
        "snoopi.base_model_license": licence,
    }


def public_name(source: str) -> str:
    """A teacher as others may read of it: a hub name, or of a local path the last part alone."""
    return source if is_hub_name(source) and not Path(source).exists() else Path(source).resolve().name


def write_hash(path: Path) -> str:
    """Puts the SHA-256 of a safetensors file's tensor data into its header, in place of NO_HASH; returns it."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        found = "0x" + hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(8)
        file.write(header.replace(NO_HASH.encode(), found.encode(), 1))
        file.flush()
        os.fsync(file.fileno())
    return found


def licence_of(*models: str) -> str:
    """The licences of models, each once: what a card (README.md of the folder or of the hub's cache) names, else where
    to look."""
    return " and ".join(dict.fromkeys(map(_licence, models)))


def _licence(model: str) -> str:
    card = Path(model) / "README.md"
    if not Path(model).exists():
        import huggingface_hub

        try:
            found = huggingface_hub.try_to_load_from_cache(model, "README.md")
        except ValueError:  # no name that a hub could have
            found = None
        if not isinstance(found, str):
            return LICENCE_UNKNOWN
        card = Path(found)
    try:
        front = re.match(r"---\s*\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
        entry = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        entry = None
    licence = entry.get("license") if isinstance(entry, dict) else None
    return quoted(licence) if isinstance(licence, str) and licence.strip() else LICENCE_UNKNOWN
