"""What every node with a preset shares: the input, how the preset is found, and how the user is told."""

import contextlib
import logging
import sys

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from .quoting import sentence, shown
from .sampling.detect import AUTO, Choice, choose
from .sampling.files import stamp
from .sampling.origin import origin_of
from .sampling.presets import PATH, usable_presets, user_path

HIDDEN = [io.Hidden.dynprompt, io.Hidden.unique_id]


def preset_input() -> io.Combo.Input:
    """The list of presets, the user's own among them; a malformed table of the user is told of when a node runs."""
    presets, trouble = usable_presets()
    if trouble:
        logging.warning("SNOOPI: %s", sentence(trouble))
    return io.Combo.Input(
        "preset",
        options=[AUTO, *presets],
        default=AUTO,
        tooltip=(
            "Which model it is, and so how it must be run. auto finds out from the file and says what it took; choose "
            "one yourself if it could not tell."
        ),
    )


def preset_for(node: type[io.ComfyNode], model: ModelPatcher, name: str) -> Choice:
    """The preset a node was asked for; `auto` also looks at the graph before it.

    Raises:
        ValueError: there is no such preset, or none fits the model.
    """
    graph, node_id = (node.hidden.dynprompt, node.hidden.unique_id) if node.hidden else (None, None)
    return choose(model, name, origin_of(model, graph, node_id) if name == AUTO else None)


def tables_now() -> str:
    """What differs once a table of presets is edited, for the nodes' fingerprints."""
    return str([stamp(str(path)) for path in (PATH, user_path())])


def show(node: type[io.ComfyNode], text: str) -> str:
    """Write `text` on the node in the browser, if ComfyUI runs as a server; what was written, which no HTML is in."""
    text = shown(text)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node.hidden and node.hidden.unique_id:
        with contextlib.suppress(UnicodeEncodeError):  # the id of a node is any text too
            server.send_progress_text(text, node.hidden.unique_id)
    return text
