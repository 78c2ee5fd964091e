"""Looks at a finished picture once more, through some noise, to see where in it the negative prompt acts."""

import dataclasses

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..guidance.kept import Kept
from ..guidance.layouts import find_layout
from ..guidance.negative import Negative
from ..guidance.payload import steered_by
from ..guidance.watch import Watch
from ..sampling.latent import check_size
from ..sampling.one_step import GuiderAtCfg1

SEED = 0
#: What of a CONDITIONING says where or when it acts: a look takes every prompt for the whole picture.
PLACES = ("area", "mask", "mask_strength", "strength", "start_percent", "end_percent", "timestep_start", "timestep_end")


def look(
    model: ModelPatcher,
    negatives: dict[str, Negative],
    positive: list,
    samples: torch.Tensor,
    noise: float,
    word: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """How strongly the negatives act at every place of a picture, block by block, in one call of the model.

    Args:
        negatives: what the model is steered away from; of a word, the one that holds it.
        samples: the picture, latents [batch, channels, (frames,) height, width].
        noise: how far back in the sampling the picture is put, above 0 and up to 1.
        word: as in `Watch`.

    Returns:
        [batch, (frames,) height, width] by the name of the block, in any unit; {} where no negative acts at this noise.

    Raises:
        ValueError: the samples or the positive do not fit the model.
    """
    if not torch.is_tensor(samples) or samples.ndim < 4 or not has_places(model.get_model_object("diffusion_model")):
        raise ValueError(
            "What this model makes lies in one row, picture and sound, in which nothing has a place: use the map with "
            "a model of pictures or videos without sound."
        )
    check_size(samples, model.get_model_object("latent_format"))
    # Only where and whether, at any time of the sampling; with nothing kept, which is numbered by the entries.
    negatives = {
        name: dataclasses.replace(negative, start_percent=0.0, end_percent=1.0, kept=Kept())
        for name, negative in negatives.items()
    }
    watch = Watch(word)
    watched = steered_by(model, negatives, watch)
    sampling = watched.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.percent_to_sigma(1.0 - noise)), 0.0])
    samples = samples.float()
    guider = GuiderAtCfg1(watched)
    guider.inner_set_conds({"positive": [[text, _without_places(more)] for text, more, *_ in positive]})
    guider.sample(
        comfy.sample.prepare_noise(samples, SEED), samples, comfy.samplers.sampler_object("euler"), sigmas,
        disable_pbar=True, seed=SEED,
    )  # fmt: skip
    return watch.maps()


def has_places(diffusion_model: torch.nn.Module) -> bool:
    layout = find_layout(diffusion_model)
    return hasattr(layout, "spread") or hasattr(layout, "patch")


def _without_places(options: dict) -> dict:
    return {name: value for name, value in options.items() if name not in PLACES}
