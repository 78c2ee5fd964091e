"""Boogu: OmniGen 2 with blocks of two streams before its own, in which the picture also attends to itself alone."""

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import double_and_single
from .omnigen2 import READS as READS
from .omnigen2 import RULE as RULE
from .omnigen2 import TEXT_CHANGES_WITH_TIME as TEXT_CHANGES_WITH_TIME
from .omnigen2 import TEXT_FIRST as TEXT_FIRST
from .omnigen2 import patch as patch
from .omnigen2 import picture as picture
from .omnigen2 import positions as positions_of_text
from .omnigen2 import text as text
from .omnigen2 import width as width

RETURNS_TEXT = 1


def blocks(model):
    return double_and_single(model.double_stream_layers, model.single_stream_layers)


def positions(model, tokens, call):
    """Of one token more, for the picture that there is not."""
    return positions_of_text(model, tokens + 1, call)


def text_tokens(block, given, call):
    if "instruct_hidden_states" in given:
        call.text_tokens = given["instruct_hidden_states"].shape[1]
    return call.text_tokens


def alone(block, given, text, positions):
    positions = positions.expand(len(text), *positions.shape[1:])
    if "instruct_hidden_states" in given:
        return {
            "instruct_hidden_states": text,
            "img_hidden_states": no_picture(text, given["img_hidden_states"]),
            "joint_rotary_emb": positions,
            "img_rotary_emb": positions[:, -1:],
            "joint_attention_mask": None,
            "img_attention_mask": None,
        }
    return {"hidden_states": text, "attention_mask": None, "image_rotary_emb": positions[:, :-1]}
