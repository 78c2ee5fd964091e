"""Mochi: video and text in two streams of different width, the text after the video; its last block leaves the text."""

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("t5_yproj", "patch_size")
TEXT_FIRST = False
RETURNS_TEXT = 1


def blocks(model):
    return numbered(model.blocks)


def width(model):
    return model.t5_yproj.in_features


def needs(model):
    return ("attention_mask",)


def text(model, conds, timestep):
    """Without its padding, which attention leaves out."""
    return model.t5_yproj(conds["c_crossattn"][:, : conds["num_tokens"]])


def patch(model):
    return 1, model.patch_size, model.patch_size


def text_tokens(block, given, call):
    return min(given["crop_y"], given["y"].shape[1])


def alone(block, given, text, positions):
    turned = {name: given[name][:1] for name in ("rope_cos", "rope_sin")}
    return {"x": no_picture(text, given["x"]), "y": text, "crop_y": text.shape[1], **turned}
