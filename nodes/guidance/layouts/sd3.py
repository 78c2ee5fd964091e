"""SD3 and SD3.5: text and picture in two streams, without positions."""

from ..side_stream import forwards as forwards
from ..side_stream import no_picture
from .naming import numbered

TEXT_CHANGES_WITH_TIME = False
RULE = "difference"
READS = ("context_embedder", "context_processor", "patch_size")
TEXT_FIRST = True
POSITIONAL = ("context", "x")


def blocks(model):
    return numbered(model.joint_blocks)


def width(model):
    return model.context_embedder.in_features


def needs(model):
    return ("pooled_output",)


def text(model, conds, timestep):
    context = conds["c_crossattn"]
    if model.context_processor is not None:
        context = model.context_processor(context)
    return model.context_embedder(context)


def patch(model):
    return model.patch_size, model.patch_size


def text_tokens(block, given, call):
    return given["context"].shape[1]


def alone(block, given, text, positions):
    return {"context": text, "x": no_picture(text, given["x"])}
