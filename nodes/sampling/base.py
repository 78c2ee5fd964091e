"""What the model that a preset runs on predicts itself, and on which schedule.

A preset for a LoRA or a family of models takes both from there; that of a whole model says what the file holds.
"""

import dataclasses

import comfy.model_sampling
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher

from .backbones import backbone_of
from .parameterization import PresetSampling, formula_of
from .preset import Preset

NAMES = {
    comfy.model_sampling.EPS: "eps",
    comfy.model_sampling.V_PREDICTION: "v",
    comfy.model_sampling.EDM: "EDM",
    comfy.model_sampling.X0: "x0",
    comfy.model_sampling.CONST: "flow-",
}
#: What a file says of its model by a key that it holds. EPS is what ComfyUI takes for granted where it holds none.
STATED = {ModelType.V_PREDICTION: "v", ModelType.V_PREDICTION_EDM: "v on the EDM schedule", ModelType.EDM: "EDM"}


def base_sampling(model: ModelPatcher) -> torch.nn.Module:
    """The model-sampling object that the model has without a preset: its own, or that of a ModelSampling node."""
    sampling = model.get_model_object("model_sampling")
    return sampling.base if isinstance(sampling, PresetSampling) else sampling


def prediction_of(sampling: torch.nn.Module) -> str:
    formula = formula_of(sampling)
    return NAMES.get(formula, formula.__name__)


def on_base(model: ModelPatcher, preset: Preset) -> Preset:
    """`preset` with what the model itself predicts, if the preset takes it from there."""
    predicted = prediction_of(base_sampling(model))
    if not preset.follows_base or predicted == preset.prediction:
        return preset
    return dataclasses.replace(preset, prediction=predicted)


def contradiction(model: ModelPatcher, preset: Preset) -> str | None:
    """What the model's file says that it predicts, if that is not what a preset for a whole model says.

    Of SD 2.x ComfyUI only guesses it: there the preset decides.
    """
    stated = STATED.get(model.model.model_type)
    if preset.follows_base or backbone_of(model) == "SD 2.x" or stated == preset.prediction:
        return None
    return stated


def put_aside(model: ModelPatcher, preset: Preset) -> bool:
    """Whether a ModelSampling node says something else than a preset for a whole model, which goes before it."""
    sampling = base_sampling(model)
    own = model.object_patches_backup.get("model_sampling", model.model.model_sampling)
    if preset.follows_base or sampling is own:
        return False
    zsnr = getattr(sampling, "zsnr", False) and not model.model.model_config.sampling_settings.get("zsnr", False)
    return prediction_of(sampling) != preset.prediction or bool(zsnr)
