"""What an exported file says of itself: ModelSpec 1.0.1, and our own keys under `snoopi.`."""

import datetime
import hashlib
import json

from ..config import Config, to_dict


def metadata(config: Config, title: str, resolution: str) -> dict[str, str]:
    """Safetensors metadata (strings only). resolution: pixels, "512x512".

    `snoopi.start_timestep`, `snoopi.start_noise` and `snoopi.prediction` tell a sampler how the student starts.
    """
    described = json.dumps(to_dict(config), sort_keys=True).encode()
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": resolution,
        "modelspec.description": "One-step text-to-image student, distilled by PG-SB (SNOOPI, arXiv 2412.02687).",
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "modelspec.prediction_type": "epsilon",
        "modelspec.usage_hint": f"One step from timestep {config.start.timestep}, {config.start.noise} noise, CFG 1.",
        "snoopi.format": "1",
        "snoopi.start_timestep": str(config.start.timestep),
        "snoopi.start_noise": config.start.noise,
        "snoopi.prediction": "epsilon",
        "snoopi.kappa_min": str(config.kappa[0]),
        "snoopi.kappa_max": str(config.kappa[1]),
        "snoopi.config_sha256": hashlib.sha256(described).hexdigest(),
        "snoopi.base_model": config.teacher,
    }
