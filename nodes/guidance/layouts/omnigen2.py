"""OmniGen 2: text, reference pictures and picture in one stream; the text refined by blocks of its own before."""

import torch

from ..side_stream import forwards as forwards
from .grid import patches
from .naming import numbered
from .padding import without_padding

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("time_caption_embed", "context_refiner", "rope_embedder", "patch_size")
TEXT_FIRST = True


def blocks(model):
    return numbered(model.layers)


def width(model):
    return model.time_caption_embed.caption_embedder[1].in_features


def text(model, conds, timestep):
    context = model.time_caption_embed.caption_embedder(without_padding(conds))
    turned = _turned(model, context.shape[1], context.device)
    for block in model.context_refiner:
        context = block(context, None, turned)
    return context


def picture(model, x, conds):
    """After the reference pictures."""
    first = sum(patches(latent, patch(model)) for latent in conds.get("ref_latents") or ())
    return slice(first, first + patches(x, patch(model)))


def positions(model, tokens, call):
    return _turned(model, tokens, call.x.device)


def _turned(model, tokens, device):
    """Rope of so many tokens of text, which count along every axis."""
    ids = torch.arange(tokens, dtype=torch.int32, device=device)
    return model.rope_embedder.rope_embedder(ids[None, :, None].expand(1, -1, 3)).movedim(1, 2)


def alone(block, given, text, positions):
    positions = positions.expand(len(text), *positions.shape[1:])
    return {"hidden_states": text, "attention_mask": None, "image_rotary_emb": positions}


def patch(model):
    return model.patch_size, model.patch_size
