"""A negative prompt that was left empty counts as not connected.

An encoded empty text cannot be told from any other, so the graph that runs is asked how the entries of the
conditioning came about.
"""

import functools
from collections.abc import Callable

import comfy.sd1_clip
from comfy_api.latest import io

from .guidance.conditioning import is_zeroed
from .upstream import is_link, node_of

#: Nodes whose entries are those of one input, then those of the other.
JOINING = {
    "ConditioningCombine": ("conditioning_1", "conditioning_2"),
    "ConditioningSetDefaultCombine": ("cond", "cond_DEFAULT"),
}
STRINGS = ("PrimitiveString", "PrimitiveStringMultiline")
#: What a node may read beside a conditioning, and no text comes to it.
NO_TEXT = {"BOOLEAN", "COMBO", "CONTROL_NET", "FLOAT", "HOOKS", "IMAGE", "INT", "LATENT", "MASK", "TIMESTEPS_RANGE",
           "VAE"}  # fmt: skip


def without_empty(node: type[io.ComfyNode], negative: list) -> tuple[list, str]:
    """The entries of a node's input `negative` that ask for something, and a sentence on the others, or "".

    An entry asks for nothing if its prompt is empty, as far as the graph tells, or its embedding zeroed out.
    """
    if not isinstance(negative, (list, tuple)) or not negative:
        return negative, ""
    zeroed = [is_zeroed(entry) for entry in negative]
    empty = _empty_entries(node, "negative", len(negative))
    left = [entry for entry, *nothing in zip(negative, zeroed, empty, strict=True) if not any(nothing)]
    if len(left) == len(negative):
        return negative, ""
    what = "empty" if any(empty) else "zeroed out"
    if not left:
        return left, f"The negative prompt is {what}, so nothing is steered."
    return left, f"{len(negative) - len(left)} of {len(negative)} negative prompts are {what} and left out."


def _empty_entries(node: type[io.ComfyNode], name: str, count: int) -> list[bool]:
    """Which of so many entries of an input come from an empty prompt; none where the graph does not tell."""
    hidden = node.hidden
    graph = (getattr(hidden, "dynprompt", None) or getattr(hidden, "prompt", None)) if hidden else None
    if not graph:
        return [False] * count

    get = functools.partial(node_of, graph)
    found = _entries(get, get(str(hidden.unique_id)).get("inputs", {}).get(name), ())
    if found and all(found):
        return [True] * count  # a schedule of hooks encodes one prompt several times
    return found if found is not None and len(found) == count else [False] * count


def _entries(get: Callable[[str], dict], link: object, seen: tuple) -> list[bool] | None:
    """Whether each entry of a linked conditioning comes from an empty prompt; None where that cannot be told."""
    if not is_link(link) or link[0] in seen:
        return None
    node, seen = get(str(link[0])), (*seen, link[0])
    inputs, types, outputs = node.get("inputs", {}), *_signature(node.get("class_type"))
    linked = {name: types.get(name) for name, value in inputs.items() if is_link(value)}
    conditionings = [name for name, kind in linked.items() if kind == "CONDITIONING"]
    texts = [inputs[name] for name, kind in types.items() if kind == "STRING" and name in inputs]
    others = set(linked.values()) - {"CONDITIONING", "STRING"}
    if not conditionings:
        is_encoder = texts and others == {"CLIP"}
        return [all(_is_empty(get, text) for text in texts)] if is_encoder else None
    if not all(_is_empty(get, text) for text in texts) or not others <= NO_TEXT | {"CLIP"}:
        return None
    if node["class_type"] in JOINING:
        parts = [_entries(get, inputs.get(name), seen) for name in JOINING[node["class_type"]]]
        return None if None in parts else [is_empty for part in parts for is_empty in part]
    if len(conditionings) > 1 and outputs[link[1]] in conditionings:  # a pair goes in and comes out
        conditionings = [outputs[link[1]]]
    parts = [_entries(get, inputs[name], seen) for name in conditionings]
    alike = len(parts) == 1 or all(part and all(part) for part in parts)
    return parts[0] if alike else None


def _signature(class_type: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """The types of a node's inputs by name, and the names of its outputs; nothing of a node that is not known."""
    import nodes  # ComfyUI's, which takes seconds to import outside of ComfyUI

    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    if node is None:
        return {}, ()
    declared = node.INPUT_TYPES()
    inputs = declared.get("required", {}) | declared.get("optional", {})
    types = {name: "COMBO" if isinstance(kind, list) else kind for name, (kind, *_) in inputs.items()}
    return types, tuple(getattr(node, "RETURN_NAMES", None) or node.RETURN_TYPES)


def _is_empty(get: Callable[[str], dict], text: object) -> bool:
    if is_link(text):
        node = get(str(text[0]))
        text = node["inputs"].get("value") if node.get("class_type") in STRINGS else None
    if not isinstance(text, str):
        return False
    return not "".join(part for part, _ in comfy.sd1_clip.token_weights(text, 1.0)).strip()
