"""Lumina 2, NewBie and Z-Image, of pixels too: text, reference pictures, picture and padding in one stream."""

import torch

from ..side_stream import forwards as forwards
from .grid import patches
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("cap_embedder", "context_refiner", "rope_embedder", "patch_size")
TEXT_FIRST = True


def blocks(model):
    return numbered(model.layers)


def width(model):
    return model.cap_embedder[1].in_features


def text(model, conds, timestep):
    """As the model takes a prompt: Z-Image fills it up with a learned token before its refiner."""
    context = model.cap_embedder(conds["c_crossattn"])
    missing = _whole(model, context.shape[1]) - context.shape[1]
    if missing:
        padding = model.cap_pad_token.to(context).expand(len(context), missing, -1)
        context = torch.cat((context, padding), dim=1)
    turned = _turned(model, context.shape[1], context.device)
    for block in model.context_refiner:
        context = block(context, None, turned)
    return context


def picture(model, x, conds):
    """After the reference pictures, which Z-Image Omni reads through two encoders."""
    references = conds.get("ref_latents") or ()
    first = sum(_whole(model, patches(latent, patch(model))) for latent in references)
    if references and getattr(model, "siglip_embedder", None) is not None:
        seen = [grid.shape[1] * grid.shape[2] for grid in (conds.get("siglip_feats") or ())[: len(references)]]
        seen += [1] * (len(references) + 1 - len(seen))  # padding in place of those that are not there
        first += sum(_whole(model, tokens) for tokens in seen)
    return slice(first, first + patches(x, patch(model)))


def positions(model, tokens, call):
    return _turned(model, tokens, call.x.device)


def _turned(model, tokens, device):
    """Rope of so many tokens of text, which count from 1 along the first axis."""
    ids = torch.zeros(1, tokens, 3, device=device)
    ids[..., 0] = torch.arange(tokens) + 1.0
    return model.rope_embedder(ids).movedim(1, 2)


def _whole(model, tokens):
    """So many tokens with the padding that follows them."""
    multiple = getattr(model, "pad_tokens_multiple", None) or 1
    return -(-tokens // multiple) * multiple


def text_tokens(block, given, call):
    return given["x"].shape[1] - _whole(call.model, call.picture.stop)


def alone(block, given, text, positions):
    changes = {"x": text, "x_mask": None, "freqs_cis": positions}
    if given.get("timestep_zero_index") is not None:  # with references, which stand at time 0: the picture's time
        changes |= {"timestep_zero_index": None, "adaln_input": given["adaln_input"].chunk(2)[1]}
    return changes


def patch(model):
    return model.patch_size, model.patch_size
