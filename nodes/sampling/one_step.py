"""Runs a model as its preset says, in one step or a few, by ComfyUI's own sampler."""

import dataclasses
import functools
import inspect
import math

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..guidance.conditioning import UNREADABLE, cannot_be_read, dense
from ..guidance.regions import check_places
from ..quoting import listed, quoted
from .backbones import backbone_of
from .base import base_sampling, contradiction, on_base
from .latent import DOWNSCALES, check_size, fitting, streams_of
from .parameterization import PREDICTIONS, PresetSampling, formula_of, with_formula
from .preset import Preset
from .presets import usable_presets
from .tcd import sample_tcd

#: In a LATENT that is not finished: the preset that left it so.
LEFT_NOISY = "snoopi_left_noisy_by"
#: Types of comfy.model_base.ModelType; older versions lack the last.
TRAINED_AS_FLOW = ("FLOW", "FLUX", "FLOW_AV")


def with_preset(model: ModelPatcher, preset: Preset) -> ModelPatcher:
    """A clone of `model` that any of ComfyUI's samplers run as `preset` says; `model` stays as it is.

    The schedule is the one the model was trained on, and a ModelSampling patch on it is put aside. If the preset is for
    a LoRA or a family, prediction and schedule are those of the model, or of the ModelSampling patch.

    Raises:
        ValueError: the preset is for another kind of model.
    """
    check_fit(model, preset)
    preset = on_base(model, preset)
    model = model.clone()
    model.add_object_patch("model_sampling", _sampling(model, preset))
    if preset.latent_scale is not None:
        model.add_object_patch("latent_format", comfy.latent_formats.SD15(preset.latent_scale))
    return model


def steps(model: ModelPatcher, strength: float = 1.0) -> tuple[ModelPatcher, torch.Tensor]:
    """The model to sample with and the sigmas of its steps, in fp32, the last 0 unless another model goes on.

    Below strength 1 the first listed timestep at or under 1000 * strength is where sampling starts, from the picture
    with that much noise added, as a scheduler's add_noise does it: what else the preset says of its first noise is for
    pictures from nothing. If all are higher, it is one step from the first of `image_starts`.

    Args:
        model: of `with_preset`.
        strength: above 0, up to 1.

    Raises:
        ValueError: none of these timesteps is that low.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"denoise is {strength}: give a number above 0 and up to 1.")
    sampling: PresetSampling = model.get_model_object("model_sampling")
    preset, sigmas = sampling.preset, sampling.listed_sigmas()
    if preset.stage:
        return model, _stage(preset, sigmas, strength)
    if strength < 1:
        if _lowest_start(preset) > 1000 * strength:
            raise ValueError(_too_low(model, preset, strength))
        sigmas = sigmas[[level <= 1000 * strength for level in preset.noise_levels]]
        if len(sigmas) == 0:
            start = next(start for start in preset.image_starts if start <= 1000 * strength)
            preset = dataclasses.replace(preset, timesteps=(start,), image_starts=())
            sigmas = _sampling(model, preset).listed_sigmas()
        if preset.follows_base or not preset.is_flow:
            model = model.clone()
            model.add_object_patch("model_sampling", _sampling(model, dataclasses.replace(preset, noise="vp")))
    return model, torch.cat([sigmas, sigmas.new_zeros(1)])


def _stage(preset: Preset, sigmas: torch.Tensor, strength: float) -> torch.Tensor:
    if strength < 1:
        raise ValueError(
            f"denoise is {strength:g}, but the preset {quoted(preset.name)} is one of two stages, which take turns "
            f"from noise alone: set denoise to 1."
        )
    first, end = preset.stage
    return torch.cat([sigmas, sigmas.new_zeros(1)])[first : end + 1]


def sample(
    model: ModelPatcher,
    sigmas: torch.Tensor,
    positive: list,
    latent: dict,
    seed: int,
    callback=None,
    negative: list | None = None,
) -> dict:
    """Sample `latent` without CFG, with the noise a KSampler draws for the same seed.

    Args:
        model, sigmas: of `steps`.
        positive: ComfyUI's CONDITIONING.
        latent: a LATENT: samples [batch, channels, height, width], and maybe noise_mask and batch_index.
        callback: called with (step, x0, x, total_steps) after every step.
        negative: what patches of the model that read the unconditional get, as from a KSampler at CFG 1; None for the
            positive again, which leaves the picture as it is.

    Returns:
        The LATENT with new samples in fp32.

    Raises:
        ValueError: the latent or the positive does not fit the model, or the picture is not finite; one sentence that
            names it.
    """
    downscale = {key: latent[key] for key in DOWNSCALES if key in latent}
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters  # older cores know none of them
    samples = latent["samples"]
    if len(streams_of(samples)) == 1:
        with fitting(samples):
            samples = comfy.sample.fix_empty_latent_channels(
                model, samples, **{key: value for key, value in downscale.items() if key in known}
            )
    picture = streams_of(samples)[0]
    check_size(picture, model.get_model_object("latent_format"))
    check_places("positive", positive, picture[:, :1])
    positive = [[dense(embedding), *more] for embedding, *more in positive]
    sampling = model.get_model_object("model_sampling")
    preset = sampling.preset
    check_stage(preset, latent)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    if preset.stage and preset.stage[0] > 0:
        noise = noise * 0  # what comes in is noisy already
    if samples.dtype == torch.float16:  # older cores sample in it, and end in NaN
        samples, noise = samples.float(), noise.float()

    guider = GuiderAtCfg1(model)
    conds = {"positive": positive}
    if reads_unconditional(model):
        conds["negative"] = negative or [[text, more | {"prompt_type": "positive"}] for text, more, *_ in positive]
    guider.inner_set_conds(conds)
    samples = guider.sample(
        noise,
        samples,
        comfy.samplers.KSAMPLER(sample_tcd) if preset.gamma else comfy.samplers.sampler_object(sampling.sampler),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    samples = samples.to(comfy.model_management.intermediate_device())
    if not all(torch.isfinite(stream).all() for stream in streams_of(samples)):
        raise ValueError(
            "The picture came out as NaN or infinite numbers: start ComfyUI with --force-fp32, or look for a LoRA, a "
            "prompt weight or a latent with very large numbers."
        )
    latent = {key: value for key, value in latent.items() if key not in (*downscale, LEFT_NOISY)}
    left_noisy = {LEFT_NOISY: preset.name} if float(sigmas[-1]) > 0 else {}
    return latent | {"samples": samples} | left_noisy


def check_stage(preset: Preset, latent: dict) -> None:
    """Raise ValueError, one sentence, unless the stages of a model of several follow on each other."""
    before, goes_on = latent.get(LEFT_NOISY), bool(preset.stage) and preset.stage[0] > 0
    if before is not None and not goes_on:
        raise ValueError(
            f"The latent_image was left noisy by the preset {quoted(before)}, and the preset {quoted(preset.name)} "
            f"does not go on from there: choose the preset of its second stage, with the model of that stage."
        )
    if goes_on and before is None and not any(map(torch.count_nonzero, streams_of(latent["samples"]))):
        raise ValueError(
            f"The preset {quoted(preset.name)} goes on from a latent that the first model left noisy, but the "
            f"latent_image is empty: connect the latent of a SNOOPI One-Step Sampler with the other model of the two."
        )


class GuiderAtCfg1(comfy.samplers.CFGGuider):
    """At CFG 1; names the positive where ComfyUI fails before the network was called."""

    called = False

    def predict_noise(self, *args, **kwargs):
        self.called = True
        return super().predict_noise(*args, **kwargs)

    def sample(self, *args, **kwargs):
        try:
            return super().sample(*args, **kwargs)
        except UNREADABLE as error:
            if self.called:
                raise
            raise cannot_be_read("positive", error) from error


def reads_unconditional(model: ModelPatcher) -> bool:
    """Whether patches of the model say that they read it, as Self-Attention Guidance does, or may change the CFG."""
    flag = model.model_options.get("disable_cfg1_optimization", False)
    return bool(flag or model.get_all_wrappers(WrappersMP.PREDICT_NOISE))


def _lowest_start(preset: Preset) -> float:
    return min(preset.noise_levels[-1], *preset.image_starts, 1000)


def _too_low(model: ModelPatcher, preset: Preset, strength: float) -> str:
    """The sentence for a denoise under every start of a preset, which names what works."""
    lowest, backbone = _lowest_start(preset), backbone_of(model)
    able = [
        name for name, row in usable_presets()[0].items()
        if backbone in row.backbones and _lowest_start(row) <= 1000 * strength
    ]  # fmt: skip
    other = f", or load a model that starts lower and choose its preset: {listed(able)}" if able else ""
    return (
        f"denoise is {strength:g}, but the preset {quoted(preset.name)} starts no lower than {lowest / 1000:g}: "
        f"raise denoise to {math.ceil(lowest / 10) / 100:g}{other}."
    )


def check_fit(model: ModelPatcher, preset: Preset) -> None:
    """Raise ValueError, one sentence, if the preset is for another kind of model."""
    backbone = backbone_of(model)
    if preset.backbones:
        fits, wanted = backbone in preset.backbones, " and ".join(preset.backbones)
    else:
        fits = preset.is_flow or model.model.model_type in (ModelType.EPS, ModelType.V_PREDICTION)
        wanted = "models with a schedule of 1000 timesteps"
    if not fits:
        called = backbone or type(model.model).__name__
        others = listed(name for name, row in usable_presets()[0].items() if backbone in row.backbones)
        remedy = f"choose auto or one of {others}" if others else "choose another model, since no preset is for it"
        raise ValueError(f"The preset {quoted(preset.name)} is for {wanted}, but the model is {called}: {remedy}.")
    if stated := contradiction(model, preset):
        raise ValueError(
            f"The preset {quoted(preset.name)} is for a whole model that predicts {preset.prediction}, "
            f"but this model's file says that it predicts {stated}: choose auto, or the preset of the LoRA on it."
        )


def _sampling(model: ModelPatcher, preset: Preset) -> PresetSampling:
    base, sampling = model.model, base_sampling(model)
    if preset.follows_base or not preset.is_flow:
        return _on_schedule(preset, sampling, base.model_config)
    is_trained_so = base.model_type.name in TRAINED_AS_FLOW
    own = 1.0 if base.model_type == ModelType.FLUX else base.model_config.sampling_settings.get("multiplier", 1000)
    return PREDICTIONS[preset.prediction](preset, sampling, own if is_trained_so else 1000)


@functools.lru_cache(maxsize=8)  # the tables take over a millisecond, and nobody writes to them
def _on_schedule(preset: Preset, base: torch.nn.Module, model_config) -> PresetSampling:
    kind = with_formula(formula_of(base)) if preset.follows_base else PREDICTIONS[preset.prediction]
    return kind(preset, base, model_config)
