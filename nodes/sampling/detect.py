"""Which preset fits a model: by its own metadata, else by its file's name, else by its structure."""

import contextlib
import dataclasses
import fnmatch
import re
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

from ..quoting import listed, quoted
from .backbones import BACKBONES, backbone_of
from .files import ModelFile
from .parameterization import PresetSampling
from .presets import Preset, all_presets, changed, find_preset, usable_presets

AUTO = "auto"
PREFIX = "snoopi."
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class Choice:
    """The preset taken, and why, as the end of a sentence; `known` is False for the last resort.

    trouble: what is wrong with the user's own table, which nothing was taken from.
    """

    preset: Preset
    reason: str
    known: bool = True
    trouble: str = ""

    @property
    def sentence(self) -> str:
        preset = self.preset
        text = f"Preset {quoted(preset.name)}{f' ({quoted(preset.model)})' if preset.model else ''}: {self.reason}."
        timesteps = listed(f"{timestep:g}" for timestep in preset.timesteps)
        text += f" Timesteps {timesteps}; {preset.prediction}; {preset.noise} noise."
        if preset.resolution:
            text += f" Made for {preset.resolution} px."
        if preset.cfg != 1:
            text += f" Its authors add CFG {preset.cfg:g}: SNOOPI Model Sampling and a KSampler can do that."
        return f"{text} None of your own presets can be used: {self.trouble}" if self.trouble else text


def choose(model: ModelPatcher, name: str, files: list[ModelFile] = ()) -> Choice:
    """The preset called `name`, or for `auto` the one that fits.

    Args:
        files: what the model was made of, the nearest first.

    Raises:
        ValueError: there is no such preset, none fits the model, or what the file says of itself makes no sense.
    """
    if name != AUTO:
        return Choice(find_preset(name), "as chosen", trouble=usable_presets()[1])
    set_before = model.object_patches.get("model_sampling")
    if isinstance(set_before, PresetSampling):
        return Choice(set_before.preset, "set by SNOOPI Model Sampling")

    backbone = backbone_of(model)
    for file in files:
        described = _described(file, backbone)
        if described is not None:
            return Choice(described, f"the file {quoted(file.name)} says so itself")
    for file in files:
        named = preset_by_file_name(file.name, backbone)
        if named is not None:
            return Choice(named, f"by the name of the file {quoted(file.name)}")
    if backbone is None:
        raise ValueError(
            f"The model ({type(model.model).__name__}) is of a family that no preset is for: "
            f"choose a model of {', '.join(BACKBONES)}, or write a row of your own."
        )
    fallback = all_presets()[BACKBONES[backbone].fallback]
    if backbone == "FLUX.1" and not model.model.model_config.unet_config.get("guidance_embed", False):
        return Choice(fallback, "the network has the structure of FLUX.1 schnell")
    return Choice(
        fallback,
        f"neither the file nor its name tells what the model is, so it is run as {backbone} models usually are; "
        f"choose a preset if the picture is poor",
        known=False,
    )


def preset_by_file_name(name: str, backbone: str | None) -> Preset | None:
    """The row whose file pattern is found in `name` (the longest such pattern), among those for `backbone`."""
    name = _plain(name)
    matches = [
        (len(pattern), row)
        for row in all_presets().values()
        if not row.backbones or backbone in row.backbones
        for pattern in row.files
        if fnmatch.fnmatchcase(name, f"*{_plain(pattern)}*")
    ]
    return max(matches, key=lambda match: match[0], default=(0, None))[1]


def alpha_of(choice: Preset, model: ModelPatcher) -> float:
    """The strength of NASA to start from: the preset's own, else that of the backbone."""
    backbone = backbone_of(model)
    return choice.alpha if choice.alpha is not None else BACKBONES[backbone].alpha if backbone else 0.5


def _described(file: ModelFile, backbone: str | None) -> Preset | None:
    """The preset that a file exported by our trainer describes: a row by name, and what it says beyond that."""
    says = {key.removeprefix(PREFIX): value for key, value in file.metadata.items() if key.startswith(PREFIX)}
    if "preset" not in says and "start_timestep" not in says:
        return None
    presets = all_presets()
    base = presets.get(says.get("preset", "")) or preset_by_file_name(file.name, backbone)
    if base is None:
        name = BACKBONES[backbone].fallback if backbone else "sd"
        base = dataclasses.replace(presets[name], name="from file", model="")
    told = {
        "timesteps": _number(says.get("start_timestep")),
        "noise": says.get("start_noise"),
        "prediction": PREDICTIONS.get(says.get("prediction"), says.get("prediction")),
        "alpha": _number(says.get("alpha")),
    }
    told = {field: value for field, value in told.items() if value is not None}
    return changed(base, f"The file {quoted(file.name)} describes itself in a way that cannot be read", **told)


def _number(text: str | None) -> int | float | str | None:
    for kind in (int, float):
        with contextlib.suppress(TypeError, ValueError):
            return kind(text)
    return text


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.replace("\\", "/").lower())
