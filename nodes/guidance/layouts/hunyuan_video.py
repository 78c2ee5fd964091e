"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1: Flux's blocks, after blocks that refine the text."""

import inspect

import comfy.utils
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock

from . import flux
from .flux import RETURNS_TEXT as RETURNS_TEXT
from .flux import RULE as RULE
from .flux import blocks as blocks
from .flux import forwards as forwards
from .flux import needs as needs
from .flux import positions as positions
from .flux import text_tokens as text_tokens
from .grid import over_patches, patches

TEXT_CHANGES_WITH_TIME = True
READS = ("txt_in", "byt5_in", "vision_in", "cond_type_embedding", "vector_in", "pe_embedder", "params", "patch_size")
#: Older cores have the picture first in this family, and an argument for it.
TEXT_FIRST = "flipped_img_txt" not in inspect.signature(DoubleStreamBlock).parameters


def width(model):
    return model.txt_in.input_embedder.in_features


def text(model, conds, timestep):
    """Without the tokens that its attention mask leaves out, and with those of ByT5 and of CLIP vision."""
    context, mask = conds["c_crossattn"], conds.get("attention_mask")
    if mask is not None and not mask.is_floating_point():
        mask = (mask - 1).to(context.dtype) * torch.finfo(context.dtype).max
    refined = model.txt_in(context, timestep, mask)
    if mask is not None:
        refined = refined[:, (mask > torch.finfo(mask.dtype).min / 2).any(dim=0)]
    parts = [(0, refined)]
    for kind, name, layer in ((1, "txt_byt5", model.byt5_in), (2, "clip_fea", model.vision_in)):
        if layer is not None and conds.get(name) is not None:
            parts.append((kind, comfy.utils.repeat_to_batch_size(layer(conds[name]), len(refined))))
    if model.cond_type_embedding is not None:
        kinds = model.cond_type_embedding.weight
        parts = [(kind, part + kinds[kind].to(part)) for kind, part in reversed(parts)]
    return torch.cat([part for _, part in parts], dim=1)


def picture(model, x, conds):
    """After a reference picture, and after a first frame that stays as it is."""
    reference = conds.get("ref_latent")
    before = 0 if reference is None else patches(reference, patch(model))
    return slice(before + _staying(model, x, conds), before + patches(x, patch(model)))


def _staying(model, x, conds):
    return 0 if conds.get("guiding_frame_index") is None else patches(x[:, :, :1], patch(model))


def alone(block, given, text, positions):
    """With the modulation of the prompt's text, where that of a first frame is another."""
    changes, parts = flux.alone(block, given, text, positions), given.get("modulation_dims")
    if parts and not TEXT_FIRST:
        changes["modulation_dims"] = [(0, None, parts[-1][-1])]
    return changes


def spread(model, x, map, conds):
    return over_patches(map, x, patch(model))[:, _staying(model, x, conds) :]


def patch(model):
    return tuple(model.patch_size)
