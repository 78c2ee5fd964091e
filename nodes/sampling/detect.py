"""Which preset fits a model: by its own metadata, else by its file's name, else by its structure."""

import contextlib
import dataclasses
import re
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

from ..guidance.layouts import as_known, find_layout
from ..quoting import as_written, listed, quoted
from .backbones import BACKBONES, FLUX2_DEV, backbone_of, reads_guidance
from .base import contradiction, on_base, put_aside
from .files import FORMAT, PREFIX, ModelFile
from .names import is_for_other_families, is_published_base, named_by, preset_by_name, stage_of
from .origin import Origin, origin_of
from .parameterization import PresetSampling
from .preset import Preset, changed
from .presets import all_presets, find_preset, read_presets, usable_presets

#: NASA's strength where prompt and picture share one attention, and where the prompt has one of its own.
SHARED_ATTENTION, OWN_ATTENTION = 1.0, 0.5
AUTO = "auto"
#: The row that a file of ours fills in where it names none, by family: those for one step.
ONE_STEP = {"SD 1.x": "sd", "SD 2.x": "sd", "SDXL": "sd", "PixArt": "pixart", "SD 3.x": "pg-sb-sd3"}
#: What the count of steps takes the place of in the name of a preset's model: "SDXL-Lightning, 4 steps".
STEPS = re.compile(r", (\d+|one) steps?$")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class Choice:
    """The preset taken, and why, as the end of a sentence; `known` is False for the last resort.

    undistilled: whether the model is known to be none of few steps, so that any list of steps is wrong.
    notes: whole sentences on what a file says but cannot be followed.
    trouble: what is wrong with the user's own table, which nothing was taken from.
    """

    preset: Preset
    reason: str
    known: bool = True
    undistilled: bool = False
    notes: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def said(self) -> str:
        """What a person is told: what the model is run as, why, and what else matters."""
        preset, count = self.preset, len(self.preset.timesteps)
        steps = "1 step" if count == 1 else f"{count} steps"
        called = quoted(STEPS.sub("", preset.model) or f"the preset {preset.name}")
        reason = f" ({self.reason})" if self.known else f": {self.reason}"
        text = [f"Running as {called}, {steps}{reason}."]
        if preset.cfg != 1:
            text.append(f"Its authors add CFG {preset.cfg:g}: SNOOPI Model Sampling and a KSampler can do that.")
        trouble = [f"None of your own presets can be used: {self.trouble}"] if self.trouble else []
        return " ".join([*text, *self.notes, *trouble])

    @property
    def details(self) -> str:
        preset = self.preset
        timesteps = listed(f"{timestep:g}" for timestep in preset.timesteps)
        made_for = f" Made for {preset.resolution} px." if preset.resolution else ""
        said = f"Preset {quoted(preset.name)}: timesteps {timesteps}; {preset.prediction}; {preset.noise} noise."
        return said + made_for

    @property
    def sentence(self) -> str:
        return f"{self.said} {self.details}"


def choose(model: ModelPatcher, name: str, origin: Origin | None = None) -> Choice:
    """The preset called `name`, or for `auto` the one that fits, with what the model itself predicts.

    Args:
        origin: what the model was made of; None for what it says itself.

    Raises:
        ValueError: there is no such preset, none fits the model, or what the file says of itself makes no sense.
    """
    choice = _chosen(model, name, origin)
    notes = list(choice.notes)
    preset = on_base(model, choice.preset)
    if preset != choice.preset:
        notes.append(f"It follows the model it runs on, which predicts {preset.prediction}.")
    elif put_aside(model, preset):
        notes.append("The ModelSampling node before it is put aside: the file fixes what it predicts.")
    return dataclasses.replace(choice, preset=preset, notes=tuple(notes))


def _chosen(model: ModelPatcher, name: str, origin: Origin | None) -> Choice:
    if name != AUTO:
        return Choice(find_preset(name), "as chosen", trouble=usable_presets()[1])
    set_before = model.object_patches.get("model_sampling")
    if isinstance(set_before, PresetSampling):
        return Choice(set_before.preset, "set by SNOOPI Model Sampling")

    origin = origin or origin_of(model)
    backbone = backbone_of(model)
    told = {file: _told(model, file, file in origin.loras) for file in (*origin.loras, *origin.bases) if file}
    notes = [note for choice in told.values() for note in choice.notes]
    notes = tuple(dict.fromkeys([*notes, *_idle_notes(origin, backbone)]))
    for file in origin.loras:
        if told[file].known:
            if stage := stage_of(told[file].preset, [base.name for base in origin.bases if base]):
                reason = f"{told[file].reason}, for the stage that the model's file {quoted(stage[1])} is"
                return Choice(stage[0], reason, notes=notes)
            return dataclasses.replace(told[file], notes=notes)
    ways = [told[file] if file else UNKNOWN for file in origin.bases]
    doubt = _doubt(origin, told)
    if ways and all(way.known and way.preset == ways[0].preset for way in ways):
        if not origin.unknown_lora:
            return dataclasses.replace(ways[0], notes=notes)
        reason = f"{ways[0].reason}, but {doubt}; choose a preset if the picture is poor"
        return Choice(ways[0].preset, reason, known=False, notes=notes)

    if backbone is None:
        raise ValueError(
            f"The model ({type(model.model).__name__}) is of a family that no preset is for: choose a model of "
            f"{', '.join(BACKBONES)}, use a KSampler with the steps of its authors, or write a row of your own."
        )
    presets = all_presets()
    if backbone == "FLUX.1" and not doubt and not reads_guidance(model):
        return Choice(presets["flux-schnell"], "the network has the structure of FLUX.1 schnell", notes=notes)
    is_dev = backbone == "FLUX.2" and reads_guidance(model)
    fallback = presets[FLUX2_DEV if is_dev else BACKBONES[backbone].fallback]
    bases = [file for file in origin.bases if file and is_published_base(file.name, backbone)]
    if bases and len(bases) == len(origin.bases) and not origin.unknown_lora:
        reason = (
            f"this looks like an undistilled model (by the name of the file {quoted(bases[0].name)}): use a KSampler "
            f"with CFG, or choose a preset"
        )
        return Choice(fallback, reason, known=False, undistilled=True, notes=notes)
    doubt = doubt or "neither the file nor its name tells what the model is"
    if is_dev or (backbone == "FLUX.1" and reads_guidance(model)):
        doubt += f", and its network has the structure of {backbone} dev, which takes 20 steps without a LoRA"
    reason = (
        f"{doubt}, so it is run in {len(fallback.timesteps)} steps as few-step {backbone} models mostly are; choose a "
        f"preset if the picture is poor, or use a KSampler with CFG if it is an undistilled model"
    )
    return Choice(fallback, reason, known=False, notes=notes)


def _doubt(origin: Origin, told: dict[ModelFile, Choice]) -> str:
    """Why it cannot be known which preset fits, although a file tells of one; empty if none does."""
    names = [quoted(file.name) if file else "one that the graph does not name" for file in origin.bases]
    if len(set(names)) > 1 and any(choice.known for choice in told.values()):
        several = ", ".join(dict.fromkeys(names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"auto cannot know which of several models it is ({several})"
    if origin.unknown_lora:
        return "auto cannot know what a LoRA on it is for, since the graph does not name its file"
    return next((choice.reason for choice in told.values() if not choice.known and choice.reason), "")


def _idle_notes(origin: Origin, backbone: str | None) -> list[str]:
    """A sentence for each few-step LoRA before the model that is for another family, and so changes nothing."""
    notes = []
    for name in origin.idle:
        if families := is_for_other_families(name, backbone):
            wanted = " and ".join(families)
            notes.append(f"The LoRA {quoted(name)} is for {wanted} and changes nothing in this {backbone} model.")
    return notes


#: What a file tells that tells nothing.
UNKNOWN = Choice(Preset("", "eps", ()), "", known=False)


def preset_by_file_name(name: str, backbone: str | None) -> Preset | None:
    """The row that a file's name tells of, among those for `backbone`; None if none, or several."""
    return preset_by_name(name, backbone).row


def alpha_of(model: ModelPatcher, preset: Preset | None = None) -> float:
    """The strength of NASA to start from: the preset's own, else the backbone's, else that of its kind of attention.

    Args:
        preset: None for one that SNOOPI Model Sampling set before, if it did.
    """
    set_before = model.object_patches.get("model_sampling")
    if preset is None and isinstance(set_before, PresetSampling):
        preset = set_before.preset
    backbone = backbone_of(model)
    for own in (preset and preset.alpha, backbone and BACKBONES[backbone].alpha):
        if own is not None:
            return own
    diffusion_model = model.get_model_object("diffusion_model")
    with as_known(diffusion_model):
        layout = find_layout(diffusion_model)
    return SHARED_ATTENTION if layout is not None and layout.RULE == "difference" else OWN_ATTENTION


def _told(model: ModelPatcher, file: ModelFile, is_lora: bool) -> Choice:
    """The preset that a file says or has in its name; not known if neither, with the doubt there is as its reason."""
    if file.chosen is not None:
        return Choice(find_preset(file.chosen), "as chosen in the SNOOPI Checkpoint Loader")
    backbone = backbone_of(model)
    described, note = _described(file, backbone)
    notes = [note] if note else []
    if file.changed:
        notes.append(
            f"The file {quoted(file.name)} has changed since it was loaded: to load it anew, free ComfyUI's cache."
        )
    said = f"the file {quoted(file.name)} says so itself"
    if note:
        said = f"by what else the file {quoted(file.name)} says"
    named, reason = named_by(file, backbone, is_lora)
    doubt = "" if named.row else reason
    for preset, why in ((described, said), (named.row, reason)):
        stated = contradiction(model, preset) if preset else None
        if stated:
            notes.append(
                f"The preset {quoted(preset.name)} is not for a model that predicts {stated}, "
                f"which {quoted(file.name)} is."
            )
        elif preset and is_lora and file.strength < preset.strength / 2:
            notes.append(
                f"The LoRA {quoted(file.name)} acts at strength {file.strength:g}, too weak to make a few-step model "
                f"of it: its preset {quoted(preset.name)} is for {preset.strength:g}."
            )
        elif preset:
            shadowed = _shadowed(preset)
            return Choice(preset, why, notes=(*notes, shadowed) if shadowed else tuple(notes))
    return dataclasses.replace(UNKNOWN, reason=doubt, notes=tuple(notes))


def _shadowed(preset: Preset) -> str:
    """A sentence if a row of the user's takes the place of one of ours."""
    ours = read_presets().get(preset.name)
    if ours is None or ours == all_presets().get(preset.name):
        return ""
    return f"Your own row {quoted(preset.name)} takes the place of the pack's."


def _described(file: ModelFile, backbone: str | None) -> tuple[Preset | None, str]:
    """The preset that a file of ours describes, a row by name and what it says beyond that; and what is wrong there."""
    says = {key.removeprefix(PREFIX): value for key, value in file.metadata.items() if key.startswith(PREFIX)}
    if says.get("format", FORMAT) != FORMAT:
        known = f"this version knows {PREFIX}format {FORMAT} alone"
        found = as_written(says["format"])
        return None, f"What the file {quoted(file.name)} says of itself is not used: {known}, and it is {found}."
    presets = all_presets()
    row, note = presets.get(says.get("preset", "")), ""
    if "preset" in says and row is None:
        note = f"The file {quoted(file.name)} names the preset {as_written(says['preset'])}, and there is no such row."
    elif row and row.backbones and backbone not in row.backbones:
        wanted = " and ".join(row.backbones)
        return (
            None,
            f"The file {quoted(file.name)} names the preset {quoted(row.name)}, which is for {wanted}: "
            f"that is not used.",
        )
    if row is None and "start_timestep" not in says:
        return None, note
    base = row or preset_by_file_name(file.name, backbone)
    if base is None:
        name = ONE_STEP.get(backbone) or (BACKBONES[backbone].fallback if backbone else "sd")
        base = dataclasses.replace(presets[name], name="from file", model="")
    several = says["timesteps"].split(",") if "timesteps" in says else None
    told = {
        "timesteps": tuple(map(_number, several)) if several else _number(says.get("start_timestep")),
        "renoise": "fresh" if several else None,
        "noise": says.get("start_noise"),
        "prediction": PREDICTIONS.get(says.get("prediction"), says.get("prediction")),
        "alpha": _number(says.get("alpha")),
    }
    told = {field: value for field, value in told.items() if value is not None}
    if "prediction" in told:
        base = dataclasses.replace(base, follows_base=False)
    return changed(base, f"The file {quoted(file.name)} describes itself in a way that cannot be read", **told), note


def _number(text: str | None) -> int | float | str | None:
    for kind in (int, float):
        with contextlib.suppress(TypeError, ValueError):
            return kind(text)
    return text
