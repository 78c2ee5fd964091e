"""UNets with a cross-attention called attn2 in every transformer block: SD 1.x, SD 2.x, SDXL and their children."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType

import torch
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked

from ..nasa import steer_away

Attentions = dict[tuple[str, int, int], torch.nn.Module]


def attentions(diffusion_model: torch.nn.Module) -> Attentions:
    """Every attn2 by ComfyUI's name of its place: ("input" | "middle" | "output", block, transformer block in it).

    Empty for a model of another layout. A module wrapped by torch.compile is looked through.
    """
    unet = getattr(diffusion_model, "_orig_mod", diffusion_model)
    sides = {
        "input": getattr(unet, "input_blocks", ()),
        "middle": [getattr(unet, "middle_block", None) or ()],
        "output": getattr(unet, "output_blocks", ()),
    }
    return {
        (side, number, index): block.attn2
        for side, blocks in sides.items()
        for number, layers in enumerate(blocks)
        for layer in layers
        for index, block in enumerate(getattr(layer, "transformer_blocks", ()))
        if getattr(block, "attn2", None) is not None
    }


@contextmanager
def steered(
    modules: Attentions,
    alpha: torch.Tensor,
    contexts: list[torch.Tensor],
    weights: torch.Tensor | None,
    transformer_options: dict,
) -> Iterator[dict]:
    """Install NASA in `modules` for one call of the model; yields the transformer_options to call it with.

    What changes from call to call lies in attributes of the modules, and the new forward is a function of this file:
    so torch.compile traces it once, guards it (unlike transformer_options), and does not recompile for a new alpha.

    Args:
        alpha: [batch, 1, 1].
        contexts: the negatives, each [batch, tokens, width], on the model's device in its compute dtype, as alpha.
        weights: the share of each negative at each latent pixel, [batch, negatives, height, width] (or 1 x 1 where it
            is the same everywhere); None for one negative with full weight.
    """
    replaced = transformer_options.get("patches_replace", {})
    if replaced.get("attn2"):  # a block listed here never calls attn2.forward
        wrapped = {place: partial(_replaced, modules, original) for place, original in replaced["attn2"].items()}
        transformer_options = {**transformer_options, "patches_replace": {**replaced, "attn2": wrapped}}

    before = [(module, module.__dict__.get("forward")) for module in modules.values()]
    try:
        for module, _ in before:
            module.nasa_alpha, module.nasa_contexts, module.nasa_weights = alpha, contexts, weights
            module.forward = MethodType(_forward, module)
        yield transformer_options
    finally:
        for module, forward in before:
            for name in ("nasa_alpha", "nasa_contexts", "nasa_weights", "forward"):
                module.__dict__.pop(name, None)
            if forward is not None:
                module.forward = forward


def _forward(self, x, context=None, value=None, mask=None, transformer_options=None):
    """CrossAttention.forward with NASA; positive and negative tokens share one projection."""
    q = self.to_q(x)
    context = x if context is None else context
    k, *negative_k = _project(self.to_k, [context, *self.nasa_contexts])
    v, *negative_v = _project(self.to_v, [context if value is None else value, *self.nasa_contexts])
    z = _attend(self, q, k, v, mask, transformer_options)
    return self.to_out(_steer(self, z, q, negative_k, negative_v, transformer_options))


def _replaced(modules, original, q, k, v, extra_options):
    """Another pack's attn2 replacement, whose result is Z+ here."""
    module = modules[(*extra_options["block"][:2], extra_options["block_index"])]
    negative_k = _project(module.to_k, module.nasa_contexts)
    negative_v = _project(module.to_v, module.nasa_contexts)
    return _steer(module, original(q, k, v, extra_options), q, negative_k, negative_v, extra_options)


def _steer(module, z, q, negative_k, negative_v, options):
    negatives = [_attend(module, q, k, v, None, options) for k, v in zip(negative_k, negative_v, strict=True)]
    if module.nasa_weights is None:
        return steer_away(z, negatives[0], module.nasa_alpha)
    weights = torch.nn.functional.interpolate(
        module.nasa_weights, size=options["activations_shape"][-2:], mode="bilinear"
    )
    weights = weights.flatten(2).unsqueeze(-1)  # [batch, negatives, image tokens, 1]
    return steer_away(z, sum(weights[:, n] * negative for n, negative in enumerate(negatives)), module.nasa_alpha)


def _project(linear, contexts):
    """One call for all: a layer of a quantized or offloaded model casts its weights once."""
    return linear(torch.cat(contexts, dim=1)).split([context.shape[1] for context in contexts], dim=1)


def _attend(module, q, k, v, mask, options):
    options = {"attn_precision": module.attn_precision, "transformer_options": options}
    if mask is None:
        return optimized_attention(q, k, v, module.heads, **options)
    return optimized_attention_masked(q, k, v, module.heads, mask, **options)
