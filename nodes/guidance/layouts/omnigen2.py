"""OmniGen 2: text, reference pictures and picture in one stream; the text refined by blocks of its own before."""

import torch

from ..side_stream import forwards as forwards
from .grid import over_patches, patches
from .padding import without_padding

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
TEXT_FIRST = True


def blocks(model):
    return {str(number): [block] for number, block in enumerate(model.layers)}


def width(model):
    return model.time_caption_embed.caption_embedder[1].in_features


def needs(model):
    return ()


def text(model, conds, timestep):
    context = model.time_caption_embed.caption_embedder(without_padding(conds))
    turned = _turned(model, context.shape[1], context.device)
    for block in model.context_refiner:
        context = block(context, None, turned)
    return context


def picture(model, x, conds):
    """After the reference pictures."""
    size = (model.patch_size, model.patch_size)
    first = sum(patches(latent, size) for latent in conds.get("ref_latents") or ())
    return slice(first, first + patches(x, size))


def positions(model, tokens, call):
    return _turned(model, tokens, call.x.device)


def _turned(model, tokens, device):
    """Rope of so many tokens of text, which count along every axis."""
    ids = torch.arange(tokens, dtype=torch.int32, device=device)
    return model.rope_embedder.rope_embedder(ids[None, :, None].expand(1, -1, 3)).movedim(1, 2)


def text_tokens(block, given, call):
    return call.text_tokens


def alone(block, given, text, positions):
    positions = positions.expand(len(text), *positions.shape[1:])
    return {"hidden_states": text, "attention_mask": None, "image_rotary_emb": positions}


def text_of(block, returned):
    return returned


def spread(model, x, map, conds):
    return over_patches(map, x, (model.patch_size, model.patch_size))
