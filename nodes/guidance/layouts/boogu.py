"""Boogu: OmniGen 2 with blocks of two streams before its own, in which the picture also attends to itself alone."""

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .omnigen2 import RULE as RULE
from .omnigen2 import TEXT_CHANGES_WITH_TIME as TEXT_CHANGES_WITH_TIME
from .omnigen2 import TEXT_FIRST as TEXT_FIRST
from .omnigen2 import needs as needs
from .omnigen2 import picture as picture
from .omnigen2 import positions as positions_of_text
from .omnigen2 import spread as spread
from .omnigen2 import text as text
from .omnigen2 import width as width

READS = ("time_caption_embed", "context_refiner", "rope_embedder", "patch_size")


def blocks(model):
    """double0, double1, ..., single0, single1, ..."""
    streams = {"double": model.double_stream_layers, "single": model.single_stream_layers}
    return {f"{name}{number}": [block] for name, part in streams.items() for number, block in enumerate(part)}


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


def text_of(block, returned):
    return returned[1] if isinstance(returned, tuple) else returned
