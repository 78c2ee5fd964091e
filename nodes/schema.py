"""A node's schema on every ComfyUI version."""

import dataclasses

from comfy_api.latest import io

KNOWN_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields) -> io.Schema:
    """`io.Schema(**fields)` without fields this ComfyUI does not know yet; an unknown one would cost the whole pack."""
    return io.Schema(**{name: value for name, value in fields.items() if name in KNOWN_FIELDS})


def advanced(widget: io.Input) -> io.Input:
    """The input, folded away by frontends that can do that; older versions have no such argument."""
    widget.advanced = True
    return widget
