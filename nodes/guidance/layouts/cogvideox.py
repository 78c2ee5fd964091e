"""CogVideoX: text and video in two streams that share their weights, the text without positions."""

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("patch_embed", "patch_size", "patch_size_t")
TEXT_FIRST = True
RETURNS_TEXT = 1


def blocks(model):
    return numbered(model.blocks)


def width(model):
    return model.patch_embed.text_proj.in_features


def text(model, conds, timestep):
    return model.patch_embed.text_proj(conds["c_crossattn"])


def patch(model):
    return model.patch_size_t or 1, model.patch_size, model.patch_size


def text_tokens(block, given, call):
    return given["encoder_hidden_states"].shape[1]


def alone(block, given, text, positions):
    turned = given.get("image_rotary_emb")
    return {
        "encoder_hidden_states": text,
        "hidden_states": no_picture(text, given["hidden_states"]),
        "image_rotary_emb": turned and tuple(part[:1] for part in turned),
    }
