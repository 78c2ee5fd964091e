"""From a negative CONDITIONING to every cross-attention layer, through ComfyUI's own wrappers.

`patch` leaves one SAMPLER_SAMPLE wrapper on a cloned model. When sampling starts it prepares the negatives as ComfyUI
prepares any conditioning, and lays beside the text of every cond a payload that ComfyUI then batches, crops, repeats
and moves like the rest: whether that cond is steered, where in the picture each negative acts, and which picture of the
batch each row is, for negatives with a text for each. As every cond has one, positive and negative of CFG stay one
batch. An APPLY_MODEL wrapper, living for that run, takes the payload out
and steers the layers for that one call.
"""

import functools
import itertools

import comfy.conds
import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..quoting import quoted
from .blocks import ALL, chosen_blocks
from .conditioning import check_conditioning
from .kept import Kept
from .layouts import as_known, check_layout, find_layout, needed, refusal, spread, uncompiled
from .negative import Negative
from .prompt import Prompt, prepare
from .regions import shares
from .rules import LARGEST_ALPHA, RULES
from .side_stream import Call, SideStream, beside_each_other
from .steering import Steering, installed
from .watch import Watch

#: The rule that `auto` makes adaptive: on the demo model that does half the harm at equal success (demo/rules.py).
NASA = "nasa"
AUTO = "auto"
KEY = "snoopi_nasa"
STEERED = f"{KEY}_steered"
PICTURES = f"{KEY}_pictures"
REGION = f"{KEY}_region_{{}}".format


def patch(
    model: ModelPatcher,
    negative: list,
    alpha: float,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    blocks: str = ALL,
    norm_limit: float = 0.0,
    name: str = "",
    kept: Kept | None = None,
    acting: list | None = None,
    rule: str = NASA,
    adaptive: bool = False,
) -> ModelPatcher:
    """A clone of `model` that is steered away from `negative`; `model` stays as it is.

    Entries of `negative` may carry areas, masks, strengths and step ranges, as ComfyUI's conditioning nodes set them;
    where several overlap, their mean counts.

    Args:
        negative: ComfyUI's list of [embedding [batch, tokens, width], options].
        alpha: the strength of the rule, 0 to LARGEST_ALPHA.
        start_percent, end_percent: the part of the sampling that is steered, as fractions of the model's schedule.
        blocks: which layers are steered, such as `in4-8, mid, out3-5` (UNets) or `0-13` (transformers); or `all`.
        norm_limit: the largest L1 norm of a steered feature as a multiple of Z+'s, at least 1; 0 for none.
        name: patching a patched model under the same name replaces the earlier negative, and alpha 0 takes it away;
            negatives of different names all act.
        kept: what outlives this patch, as `kept_for_clones` gives it; None keeps with the patch.
        acting: the entries of `negative` that act; None for all.
        rule: one of `rules.RULES`, or `auto` for the one that suits the model's family, nasa being adaptive then.
        adaptive: whether alpha is less where the prompt takes nearly all of the attention.

    Raises:
        ValueError: an input is unusable, or the model is of a family that is not supported.
    """
    if sentence := refusal_of(alpha, start_percent, end_percent, norm_limit, rule):
        raise ValueError(sentence)
    diffusion_model = uncompiled(model.get_model_object("diffusion_model"))
    with as_known(diffusion_model):
        layout = find_layout(diffusion_model)
        if layout is not None:
            check_layout(layout, diffusion_model)
            width, needs = layout.width(diffusion_model), needed(layout, diffusion_model)
    if layout is None:
        raise ValueError(refusal(diffusion_model, type(model.model.model_config).__name__))
    check_conditioning("negative", negative, width, needs)
    if rule == AUTO:
        rule, adaptive = layout.RULE, adaptive or layout.RULE == NASA
    chosen = frozenset(chosen_blocks(blocks, list(layout.blocks(diffusion_model))))

    negatives = negatives_of(model)
    negatives.pop(name, None)
    acting = negative if acting is None else acting
    if alpha > 0 and acting:
        kept = Kept() if kept is None else kept
        negatives[name] = Negative(acting, alpha, start_percent, end_percent, chosen, norm_limit, rule, adaptive, kept)
    return steered_by(model, negatives)


def refusal_of(
    alpha: float = 0.0, start_percent: float = 0.0, end_percent: float = 1.0, norm_limit: float = 0.0, rule: str = AUTO
) -> str | None:
    """What is wrong with these settings, in one sentence that names the input and the remedy; None if nothing is."""
    if not 0 <= alpha <= LARGEST_ALPHA:  # NaN too
        return f"alpha is {alpha}: give a number from 0 to {LARGEST_ALPHA:g}."
    if not 0 <= start_percent <= end_percent <= 1:
        return (
            f"start_percent is {start_percent} and end_percent {end_percent}: "
            f"give numbers from 0 to 1, the start not after the end."
        )
    if rule not in (AUTO, *RULES):
        return f"There is no rule called {quoted(rule)}: choose {AUTO}, {', '.join(RULES)}."
    if norm_limit != 0 and not 1 <= norm_limit < float("inf"):
        return f"norm_limit is {norm_limit}: give a number from 1 on, such as 2.5, or 0 to switch it off."
    return None


def negatives_of(model: ModelPatcher) -> dict[str, Negative]:
    """What a model is steered away from, by the names of the patches."""
    found = {}
    for wrapper in model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        found |= wrapper.args[0]
    return found


def steered_by(model: ModelPatcher, negatives: dict[str, Negative], watch: Watch | None = None) -> ModelPatcher:
    """A clone of `model` that is steered away from these alone, and seen by `watch` meanwhile."""
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    if negatives:
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, functools.partial(_sample, negatives, watch))
    return model


def _sample(
    negatives, watch, executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
):
    """SAMPLER_SAMPLE: hand every cond of the guider the payload, and this run the wrapper that uses it."""
    prepared = [
        prompt
        for negative in negatives.values()
        for prompt in prepare(negative, guider, noise, latent_image, denoise_mask, extra_args.get("seed"))
    ]
    regions = {
        REGION(n): comfy.conds.CONDNoiseShape(prompt.region)
        for n, prompt in enumerate(prepared)
        if prompt.region is not None
    }
    if any(prompt.count > 1 for prompt in prepared):
        # In as many dimensions as the latents, or a context window of frames could take it for a list of frames.
        pictures = torch.arange(noise.shape[0], device=noise.device).view(-1, *[1] * (noise.ndim - 1))
        regions[PICTURES] = comfy.conds.CONDRegular(pictures)
    for name, entries in guider.conds.items():
        # Left on the host, which has to know which rows are steered without waiting for the device.
        steered = torch.tensor([1.0 if _is_positive(name, entries) else 0.0])
        payload = regions | {STEERED: comfy.conds.CONDRegular(steered)}
        guider.conds[name] = [entry | {"model_conds": entry["model_conds"] | payload} for entry in entries]
    layout = find_layout(guider.inner_model.diffusion_model)
    blocks_of = functools.cache(lambda model: layout.blocks(uncompiled(model.diffusion_model)))
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL,
        KEY,
        functools.partial(_apply_model, prepared, layout, blocks_of, watch),
        extra_args["model_options"],
        is_model_options=True,
    )
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)


def _apply_model(
    prompts, layout, blocks_of, watch, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs
):
    """APPLY_MODEL: take the payload out of the call and steer the layers during it."""
    steered = kwargs.pop(STEERED, None)
    pictures = kwargs.pop(PICTURES, None)
    regions = [kwargs.pop(REGION(n), None) for n in range(len(prompts))]
    acting = [(prompt, where) for prompt, where in zip(prompts, regions, strict=True) if prompt.acts_at(t[0])]
    if steered is None or not acting or not steered.any():
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    if pictures is not None:
        pictures = _in_window(pictures, transformer_options)
    model, conds = executor.class_obj, kwargs | {"c_crossattn": c_crossattn}
    with as_known(model.diffusion_model):  # before the first block, so that no picture is steered in part
        blocks = blocks_of(model)
        steerings = [*_steerings(layout, blocks, acting, model, x, t, steered, pictures, transformer_options, conds)]
        if watch is not None:
            maps = watch.begin(blocks, steerings, x, steered, len(transformer_options["cond_or_uncond"]))
            watch.places = [spread(layout, uncompiled(model.diffusion_model), x, map, conds) for map in maps]
    with installed(steerings):
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _steerings(layout, blocks, acting, model, x, t, steered, pictures, transformer_options, conds):
    """What every steered layer needs for this call."""
    diffusion_model, chunks = uncompiled(model.diffusion_model), transformer_options["cond_or_uncond"]
    prompts = [prompt for prompt, _ in acting]
    strengths = [
        _over_tokens(layout, diffusion_model, x, strength, conds)
        for strength in _strengths(acting, steered.to(x.device, non_blocking=True))
    ]
    projections = [prompt.projection(layout, blocks, model, t, pictures, transformer_options) for prompt in prompts]
    if hasattr(layout, "TEXT_FIRST"):  # joint attention
        call = Call(layout, diffusion_model, x, conds, steered, transformer_options)
        streams = [
            SideStream(prompt.negative, projection.text, strength, call)
            for prompt, projection, strength in zip(prompts, projections, strengths, strict=True)
        ]
        yield from beside_each_other(call, blocks, streams)
        return
    for block, layers in blocks.items():
        here = [n for n, prompt in enumerate(prompts) if block in prompt.negative.blocks]
        limits = [prompts[n].negative.norm_limit for n in here if prompts[n].negative.norm_limit]
        for layer in layers if here else ():
            kept = [n for n in here if layer in projections[n].keys_values]
            texts = [n for n in here if n not in kept]
            yield Steering(
                layout,
                layer,
                [projections[n].keys_values[layer] for n in kept],
                [projections[n].text for n in texts],
                [strengths[n] for n in kept + texts],
                [(prompts[n].negative.rule, prompts[n].negative.adaptive) for n in kept + texts],
                min(limits, default=0.0),
                chunks,
                transformer_options,
            )


def _over_tokens(layout, model, x, strength, conds):
    """Alpha as the layers read it: [batch, 1, 1] where it is the same for all tokens, or [batch, tokens, 1]."""
    if strength.shape[1:] == (1, 1):
        if getattr(layout, "AMONG_THE_PICTURE", None) not in conds:
            return strength
        strength = strength.view(-1, *[1] * (x.ndim - 1)).expand_as(x[:, :1])
    return spread(layout, model, x, strength, conds)


def _in_window(pictures: torch.Tensor, transformer_options: dict) -> torch.Tensor:
    """The same from a core whose context windows leave conds uncut, which gives every window the first pictures."""
    window, chunks = transformer_options.get("context_window"), len(transformer_options["cond_or_uncond"])
    if getattr(window, "dim", None) == 0 and len(window.index_list) * chunks == pictures.shape[0]:
        return pictures.new_tensor(window.index_list * chunks)
    return pictures


def _strengths(acting: list[tuple[Prompt, torch.Tensor | None]], steered: torch.Tensor) -> list[torch.Tensor]:
    """Alpha of every prompt: [batch, 1, 1], or a map [batch, 1, ...] of the latents' size where it has a region."""
    strengths = []
    for _, group in itertools.groupby(acting, key=lambda pair: id(pair[0].negative)):
        prompts, regions = zip(*group, strict=True)
        alpha = steered * prompts[0].negative.alpha
        for share in shares(list(regions), [prompt.default for prompt in prompts]):
            ndim = share.ndim if torch.is_tensor(share) else 3
            strengths.append((alpha.view(-1, *[1] * (ndim - 1)) * share).to(prompts[0].dtype))
    return strengths


def _is_positive(name: str, entries: list[dict]) -> bool:
    """Whether a guider steers towards these conds: its own name for them, then ComfyUI's prompt_type, tells.

    Their order does not: DualCFGGuider runs the negative first.
    """
    return name.startswith("positive") or not any("negative" in cond.get("prompt_type", name) for cond in entries)
