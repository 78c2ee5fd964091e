"""What a model says of itself in the file that ComfyUI's CheckpointSave and ModelSave write.

Those nodes write metadata of their own, and ask the model's config for the tensors. So the config of a patched clone
adds a tensor that holds the words which our trainer writes as metadata, and the keys by which ComfyUI knows v and EDM
models: the nodes leave those out where a preset or a ModelSampling node is set.
"""

import json

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP

from .backbones import backbone_of
from .base import base_sampling, prediction_of
from .files import FORMAT, PREFIX, WORDS
from .loras import is_merged
from .preset import Preset
from .presets import usable_presets

KEY = "snoopi_saved"
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


class Saying:
    """Takes the place of a config's `process_unet_state_dict_for_saving`, and adds tensors to what that gives."""

    def __init__(self, config, words: torch.Tensor, keys: dict[str, torch.Tensor]):
        self.config, self.words, self.keys = config, words, keys
        self.merged = False  # another model was mixed in since, so that the words are no longer true

    def __call__(self, state_dict: dict) -> dict:
        saved = self.config.process_unet_state_dict_for_saving(state_dict)
        return saved | self.keys | ({} if self.merged else {WORDS: self.words})


def saying(model: ModelPatcher, preset: Preset) -> ModelPatcher:
    """A clone of `model` whose saved file says that it is run as `preset`."""
    config = model.get_model_object("model_config")
    if isinstance(said_before := vars(config).get("process_unet_state_dict_for_saving"), Saying):
        config = said_before.config
    words = torch.tensor(list(json.dumps(_words(preset)).encode()), dtype=torch.uint8)
    own = object.__new__(type(config))  # copy.copy asks for methods, and a config has None for those it lacks
    vars(own).update(vars(config))
    own.process_unet_state_dict_for_saving = Saying(config, words, _keys(model) if preset.follows_base else {})
    model = model.clone()
    model.add_object_patch("model_config", own)
    model.remove_callbacks_with_key(CallbacksMP.ON_LOAD, KEY)
    model.add_callback_with_key(CallbacksMP.ON_LOAD, KEY, _look_for_merges)
    return model


def _look_for_merges(model: ModelPatcher, *_) -> None:
    saying = vars(model.get_model_object("model_config")).get("process_unet_state_dict_for_saving")
    if isinstance(saying, Saying):
        saying.merged = is_merged(model)


def _words(preset: Preset) -> dict[str, str]:
    """The metadata of an exported file; a row that follows its base, or has several steps, is told by its name alone,
    but for a student of ours, whose steps its file lists.
    """
    words = {"format": FORMAT} | ({"preset": preset.name} if preset.name != "from file" else {})
    row = usable_presets()[0].get(preset.name)
    own_steps = preset.renoise == "fresh" and not preset.levels and (row is None or row.timesteps != preset.timesteps)
    if not preset.follows_base and (len(preset.timesteps) == 1 or own_steps):
        if own_steps:
            words["timesteps"] = ",".join(f"{timestep:g}" for timestep in preset.timesteps)
        words["start_timestep"] = f"{preset.timesteps[0]:g}"
        words["prediction"] = PREDICTIONS.get(preset.prediction, preset.prediction)
        words |= {} if preset.is_flow else {"start_noise": preset.noise}
    words |= {} if preset.alpha is None else {"alpha": str(preset.alpha)}
    return {PREFIX + key: value for key, value in words.items()}


def _keys(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """The keys that tell ComfyUI what an SDXL model predicts, and on which schedule."""
    sampling, keys = base_sampling(model), {}
    if backbone_of(model) == "SDXL" and prediction_of(sampling) == "v":
        if isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
            limits = {"sigma_max": sampling.sigma_max, "sigma_min": sampling.sigma_min}
            keys = {f"edm_vpred.{name}": torch.tensor(float(value)) for name, value in limits.items()}
        else:
            keys = {"v_pred": torch.tensor([])} | ({"ztsnr": torch.tensor([])} if sampling.zsnr else {})
    return keys
