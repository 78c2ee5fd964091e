"""From a negative CONDITIONING to every cross-attention layer, through ComfyUI's own wrappers.

`patch` leaves one SAMPLER_SAMPLE wrapper on a cloned model. When sampling starts it prepares the negative as ComfyUI
prepares any conditioning and lays it beside the text of every cond, as a payload that ComfyUI then batches, crops,
repeats and moves like the rest; alpha travels with it and is 0 for conds that must not be steered, so that positive and
negative of CFG stay one batch. An APPLY_MODEL wrapper, living for that run, takes the payload out and installs NASA for
that one call.
"""

import functools

import comfy.conds
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .conditioning import check_conditioning
from .layouts import unet

KEY = "snoopi_nasa"
ALPHA = f"{KEY}_alpha"
CONTEXT = f"{KEY}_context_{{}}".format
REGION = f"{KEY}_region_{{}}".format


def patch(
    model: ModelPatcher, negative: list, alpha: float, start_percent: float = 0.0, end_percent: float = 1.0
) -> ModelPatcher:
    """A clone of `model` that is steered away from `negative`; `model` stays as it is.

    Patching a patched model replaces the earlier negative; alpha 0 takes it away. Entries of `negative` may carry
    areas, masks, strengths and step ranges, as ComfyUI's conditioning nodes set them; where several overlap, their mean
    counts.

    Args:
        negative: ComfyUI's list of [embedding [batch, tokens, width], options].
        alpha: the strength of NASA, 0 to 2.
        start_percent, end_percent: the part of the sampling that is steered, as fractions of the model's schedule.

    Raises:
        ValueError: an input is unusable, or the model is of a family that is not supported.
    """
    if not 0 <= alpha <= 2:
        raise ValueError(f"alpha is {alpha}: give a number from 0 to 2.")
    if not 0 <= start_percent <= end_percent <= 1:
        raise ValueError(
            f"start_percent is {start_percent} and end_percent {end_percent}: "
            f"give numbers from 0 to 1, the start not after the end."
        )
    if not unet.attentions(model.get_model_object("diffusion_model")):
        raise ValueError(
            f"The model ({type(model.model).__name__}) is of a family that NASA does not support yet: "
            f"use a UNet such as SD 1.5, SD 2.1 or SDXL."
        )
    check_conditioning("negative", negative, model.model.model_config.unet_config.get("context_dim"))

    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    if alpha > 0:
        wrapper = functools.partial(_sample, negative, alpha, start_percent, end_percent)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, wrapper)
    return model


def _sample(
    negative, alpha, start_percent, end_percent,
    executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar,
):  # fmt: skip
    """SAMPLER_SAMPLE: hand every cond of the guider the payload, and this run the wrapper that uses it."""
    model = guider.inner_model
    conds = [_scheduled(cond, start_percent, end_percent) for cond in comfy.sampler_helpers.convert_cond(negative)]
    conds = comfy.samplers.process_conds(
        model, noise, {"negative": conds}, noise.device, latent_image, denoise_mask, extra_args.get("seed")
    )["negative"]

    payload = {}
    dtype = model.manual_cast_dtype or model.get_dtype()
    for n, cond in enumerate(conds):
        context = cond["model_conds"]["c_crossattn"].cond.to(noise.device, dtype)
        payload[CONTEXT(n)] = comfy.conds.CONDCrossAttn(context)
        if cond.keys() & {"area", "mask", "strength"}:
            payload[REGION(n)] = comfy.conds.CONDNoiseShape(_region(cond, noise))

    for name, entries in guider.conds.items():
        strength = noise.new_tensor([alpha if _is_positive(name, entries) else 0.0])
        steering = payload | {ALPHA: comfy.conds.CONDRegular(strength)}
        guider.conds[name] = [entry | {"model_conds": entry["model_conds"] | steering} for entry in entries]

    windows = [(cond.get("timestep_start"), cond.get("timestep_end")) for cond in conds]
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL,
        KEY,
        functools.partial(_apply_model, windows, functools.cache(lambda model: unet.attentions(model.diffusion_model))),
        extra_args["model_options"],
        is_model_options=True,
    )
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)


def _apply_model(
    windows, attentions_of,
    executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs,
):  # fmt: skip
    """APPLY_MODEL: take the payload out of the call and steer the layers during it."""
    alpha = kwargs.pop(ALPHA, None)
    contexts = [kwargs.pop(CONTEXT(n), None) for n in range(len(windows))]
    regions = [kwargs.pop(REGION(n), None) for n in range(len(windows))]
    active = [n for n, (start, end) in enumerate(windows) if not _outside(t, start, end)]
    if alpha is None or not active:
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    contexts = [contexts[n] for n in active]
    weights = _weights([regions[n] for n in active], contexts[0])
    alpha = alpha.to(contexts[0]).view(-1, 1, 1)
    with unet.steered(attentions_of(executor.class_obj), alpha, contexts, weights, transformer_options) as options:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def _scheduled(cond: dict, start_percent: float, end_percent: float) -> dict:
    """The negative without what acts on other models (ControlNet, GLIGEN, hooks), inside the node's step range."""
    cond = {key: value for key, value in cond.items() if key not in ("control", "gligen", "hooks")}
    if start_percent > 0:
        cond["start_percent"] = max(start_percent, cond.get("start_percent", 0.0))
    if end_percent < 1:
        cond["end_percent"] = min(end_percent, cond.get("end_percent", 1.0))
    return cond


def _outside(t: torch.Tensor, start: float | None, end: float | None) -> bool:
    """Whether sigma t lies outside a step range, by the rule of comfy.samplers.get_area_and_mult."""
    return (start is not None and bool(t[0] > start)) or (end is not None and bool(t[0] < end))


def _is_positive(name: str, entries: list[dict]) -> bool:
    """Whether a guider steers towards these conds: its own name for them, then ComfyUI's prompt_type, tells.

    Their order does not: DualCFGGuider runs the negative first.
    """
    return name.startswith("positive") or not any("negative" in cond.get("prompt_type", name) for cond in entries)


def _region(cond: dict, noise: torch.Tensor) -> torch.Tensor:
    """How strongly a negative acts at each latent pixel, [batch, 1, height, width], by ComfyUI's own area and mask."""
    placed = {key: cond[key] for key in ("area", "mask", "mask_strength", "strength", "uuid") if key in cond}
    part = comfy.samplers.get_area_and_mult(placed | {"model_conds": {}}, noise, None)
    region = torch.zeros_like(noise[:, :1])
    view = region
    if part.area is not None:
        dims = len(part.area) // 2
        for dim in range(dims):
            view = view.narrow(dim + 2, part.area[dims + dim], part.area[dim])
    view.copy_(part.mult[:, :1])
    return region


def _weights(regions: list[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor | None:
    """The share of each negative, [batch, negatives, height or 1, width or 1]: the mean where they overlap."""
    if len(regions) == 1 and regions[0] is None:
        return None
    regions = [like.new_ones(like.shape[0], 1, 1, 1) if region is None else region.to(like) for region in regions]
    weights = torch.cat(torch.broadcast_tensors(*regions), dim=1)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
