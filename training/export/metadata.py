"""What an exported file says of itself: ModelSpec 1.0.1, and our own keys under `snoopi.`."""

import datetime
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

import yaml

from ..errors import quoted
from ..networks.backbones.sources import is_hub_name
from ..recipe.config import Start
from .families import SD1, Family, Layout
from .headers import read_header

NO_HASH = "0x" + "0" * 64
IMPLEMENTATIONS = {
    "checkpoint": "https://github.com/Stability-AI/generative-models",
    "unet": "https://github.com/Stability-AI/generative-models",
    "transformer": "diffusers",
    "lora": "diffusers",
}
MODEL_SPEC_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # it has no word for others
IN_WORDS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
LICENCE_UNKNOWN = "see the licence of the base model"


def model_spec(
    title: str,
    resolution: str,
    layout: Layout,
    start: Start,
    family: Family = SD1,
    prediction: str = "epsilon",
    licence: str = LICENCE_UNKNOWN,
) -> dict[str, str]:
    """ModelSpec's keys. resolution: pixels, "512x512"; prediction: epsilon, v_prediction or flow-.

    `modelspec.hash_sha256` is zeros until `write_hash` has seen the file.
    """
    return {
        "format": "pt",  # transformers and diffusers ask for it
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture + ("/lora" if layout == "lora" else ""),
        "modelspec.implementation": IMPLEMENTATIONS[layout],
        "modelspec.title": title,
        "modelspec.resolution": resolution,
        "modelspec.description": (
            f"{IN_WORDS[start.steps - 1]}-step text-to-image student, distilled by PG-SB (SNOOPI, arXiv 2412.02687)."
        ),
        "modelspec.author": "trained with ComfyUI-SNOOPI",
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "modelspec.hash_sha256": NO_HASH,
        "modelspec.license": licence,
        **({"modelspec.prediction_type": kind} if (kind := MODEL_SPEC_PREDICTIONS.get(prediction)) else {}),
        "modelspec.timestep_range": f"{start.timesteps[-1]},{start.timestep}",
        "modelspec.usage_hint": _usage(start),
    }


def our_keys(
    backbone: str,
    teacher: str,
    kappa: tuple[float, float],
    config_sha256: str,
    start: Start,
    family: Family = SD1,
    prediction: str = "epsilon",
    licence: str = LICENCE_UNKNOWN,
) -> dict[str, str]:
    """What the nodes read: `start_timestep`, `start_noise` and `prediction` tell a sampler how the student starts, and
    `timesteps`, of a student of several, its steps.

    backbone, teacher, kappa: the settings of those names; config_sha256: of all settings (recipe/config.py: digest).
    """
    told = {
        "format": "1",
        "backbone": backbone,
        "preset": family.preset,
        "start_timestep": str(start.timestep),
        **({"timesteps": ",".join(map(str, start.timesteps))} if start.steps > 1 else {}),
        **({} if prediction == "flow-" else {"start_noise": start.noise}),  # a flow model has no choice
        "prediction": prediction,
        "kappa_min": str(kappa[0]),
        "kappa_max": str(kappa[1]),
        "alpha": str(family.alpha),
        "config_sha256": config_sha256,
        "base_model": public_name(teacher),
        "base_model_license": licence,
    }
    return {f"snoopi.{key}": value for key, value in told.items()}


def _usage(start: Start) -> str:
    if start.steps == 1:
        return f"One step from timestep {start.timestep}, {start.noise} noise, CFG 1."
    listed = ", ".join(map(str, start.timesteps))
    return f"{start.steps} steps, at timesteps {listed}, {start.noise} noise first, new noise between them, CFG 1."


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
    """The licences of models, each once: what a card (README.md of the folder or of the hub's cache), the folder's
    LICENSE or a single file's own metadata name, else where to look."""
    return " and ".join(dict.fromkeys(map(_licence, models)))


def _licence(model: str) -> str:
    path = Path(model)
    if path.is_file():
        named = path.suffix == ".safetensors" and read_header(path)[1].get("modelspec.license")
        return quoted(named) if named else LICENCE_UNKNOWN
    card = path / "README.md"
    if not path.exists():
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
    return quoted(licence) if isinstance(licence, str) and licence.strip() else _licence_file(card.parent)


def _licence_file(folder: Path) -> str:
    """The first line of the folder's LICENSE, which names it."""
    for path in sorted(folder.glob("LICEN[SC]E*")):
        with suppress(OSError), path.open(errors="replace") as file:
            lines = (line.strip("# \t\r\n") for line in file.readlines(2**16))
            if first := next(filter(None, lines), ""):
                return quoted(first)
    return LICENCE_UNKNOWN
