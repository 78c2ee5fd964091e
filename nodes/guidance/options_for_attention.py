"""Brings transformer_options to the attention of blocks that take none: in place of a mask, which they hand on.

The attention's forward stays the core's own code. Only what it calls by the name of ComfyUI's attention is ours, in a
function of its own: module and class are not changed.
"""

import functools
import sys
import types
from collections.abc import Callable

CALLED = "optimized_attention"


def handed(arguments: dict, call) -> dict:
    """The arguments of such a block's forward, by name, from those and transformer_options."""
    options = arguments.pop("transformer_options")
    return arguments | {"attention_mask": (arguments.get("attention_mask"), options)}


@functools.cache
def with_options(forward: Callable) -> Callable:
    """The forward of such a block's attention, for a mask as `handed` makes it.

    Raises:
        AttributeError: it does not call ComfyUI's attention.
    """
    if CALLED not in forward.__code__.co_names:
        raise AttributeError(f"{forward.__qualname__} has no '{CALLED}'")
    module = sys.modules[forward.__module__]

    def attend(q, k, v, heads, mask, **more):
        mask, options = mask
        more |= {"mask": mask, "transformer_options": options}
        return getattr(module, CALLED)(q, k, v, heads, **more)

    names = {**forward.__globals__, CALLED: attend}
    names.pop("__name__")  # or torch.compile would look them up in the module of that name
    code = forward.__code__.replace(co_name="with_options")  # torch.compile keeps its graphs by code, not by function
    return types.FunctionType(code, names, forward.__name__, forward.__defaults__, forward.__closure__)
