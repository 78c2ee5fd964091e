"""PixelDiT and PiD: text and picture in two streams, each with its own positions; then pixels, without text."""

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("y_embedder", "y_pos_embedding", "txt_max_length", "use_text_rope", "_fetch_text_pos", "patch_size")
TEXT_FIRST = True
RETURNS_TEXT = 1


def blocks(model):
    return numbered(model.patch_blocks)


def width(model):
    return model.y_embedder.proj.in_features


def text(model, conds, timestep):
    """Cut to what the model has positions for."""
    context = model.y_embedder(conds["c_crossattn"][:, : model.txt_max_length])
    return context + model.y_pos_embedding[:, : context.shape[1]].to(context)


def patch(model):
    return model.patch_size, model.patch_size


def positions(model, tokens, call):
    return model._fetch_text_pos(tokens, call.x.device, call.x.dtype) if model.use_text_rope else None


def text_tokens(block, given, call):
    return given["y"].shape[1]


def alone(block, given, text, positions):
    picture = {"x": no_picture(text, given["x"]), "pos_img": given["pos_img"][:1]}
    return {**picture, "y": text, "pos_txt": positions, "attn_mask": None}
