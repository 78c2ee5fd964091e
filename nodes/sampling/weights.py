"""Whether a model has the weights that a file holds.

Of several files that a model may have been loaded from, this tells the one. And stock loaders keep a model when its
file is written anew, after which the file tells of another.
"""

import random

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open

PREFIXES = ("model.diffusion_model.", "", "diffusion_model.")
COMPARED = 24


def holds(path: str, model: ModelPatcher) -> bool | None:
    """Whether a safetensors file holds the weights that `model` was loaded with, some layers compared.

    None where that cannot be told: for a file of another kind or layout, or weights that are kept in another form.
    """
    own = model.model.diffusion_model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            for prefix in PREFIXES:
                names = [name for name in own if own[name].ndim > 1 and f"{prefix}{name}" in held]
                if names:
                    break
            else:
                return None
            names = random.Random(0).sample(names, min(COMPARED, len(names)))
            return all(_same(_loaded(model, name), file.get_slice(f"{prefix}{name}")) for name in names)
    except (OSError, SafetensorError, AttributeError, RuntimeError, TypeError):
        return None


def _loaded(model: ModelPatcher, name: str) -> torch.Tensor:
    """A weight without what LoRAs of any clone add while the model is in use."""
    kept = model.backup.get(f"diffusion_model.{name}")
    return comfy.utils.get_attr(model.model.diffusion_model, name) if kept is None else kept.weight


def _same(weight: torch.Tensor, held) -> bool:
    """Whether the first rows are the same. Raises TypeError for weights that are not kept in 2 bytes or more."""
    if type(weight) not in (torch.Tensor, torch.nn.Parameter) or weight.is_meta or weight.dtype.itemsize < 2:
        raise TypeError
    if list(weight.shape) != held.get_shape():
        return False
    return torch.equal(weight[:1].float().cpu(), held[:1].to(weight.dtype).float())
