"""JoyImage: picture, reference pictures and text in two streams, the text last and without positions."""

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("condition_embedder", "patch_size")
TEXT_FIRST = False
RETURNS_TEXT = 1


def blocks(model):
    return numbered(model.double_blocks)


def width(model):
    return model.condition_embedder.text_embedder.linear_1.in_features


def text(model, conds, timestep):
    return model.condition_embedder.text_embedder(conds["c_crossattn"])


def patch(model):
    return tuple(model.patch_size)


def text_tokens(block, given, call):
    return given["encoder_hidden_states"].shape[1]


def alone(block, given, text, positions):
    """The picture's first token lends its position to the one that there is not."""
    return {
        "hidden_states": no_picture(text, given["hidden_states"]),
        "encoder_hidden_states": text,
        "image_rotary_emb": given["image_rotary_emb"][:, :1],
    }
