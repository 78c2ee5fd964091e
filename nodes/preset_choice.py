"""What every node with a preset shares: the inputs, and how the preset is found."""

import dataclasses
import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from .connected import MOST_STEPS
from .quoting import sentence
from .sampling.backbones import BACKBONES, backbone_of
from .sampling.detect import AUTO, Choice, choose
from .sampling.files import stamp
from .sampling.latent import pixels_of
from .sampling.origin import origin_of
from .sampling.presets import PATH, usable_presets, user_path
from .sampling.schedule import with_steps
from .schema import advanced

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


def latent_input() -> io.Latent.Input:
    """The latent whose size a preset's steps may depend on."""
    return io.Latent.Input(
        "latent_image",
        optional=True,
        tooltip=(
            "The latent that is sampled, for models whose steps depend on the size of the picture, such as FLUX.2 "
            "klein; unconnected, it is the size they were made for."
        ),
    )


def steps_input() -> io.Int.Input:
    """How many steps, where they are not to be those of the preset."""
    return advanced(
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=MOST_STEPS,
            optional=True,
            tooltip=(
                "How many steps; 0 takes those of the preset, which the model was made for. Another number makes the "
                "list as its authors' scheduler would."
            ),
        )
    )


def preset_for(
    node: type[io.ComfyNode], model: ModelPatcher, name: str, latent: dict | None = None, steps: int = 0
) -> Choice:
    """The preset a node was asked for, with its list for the size of `latent` and so many steps.

    `auto` also looks at the graph before the node.

    Args:
        latent: a LATENT that is made or changed; None for the size the preset is made for.
        steps: 0 for those of the preset.

    Raises:
        ValueError: there is no such preset, none fits the model, or the model is known to need many steps and CFG.
    """
    graph, node_id = (node.hidden.dynprompt, node.hidden.unique_id) if node.hidden else (None, None)
    choice = choose(model, name, origin_of(model, graph, node_id) if name == AUTO else None)
    if choice.undistilled and BACKBONES[backbone_of(model)].refuses_bases:
        raise ValueError(f"{choice.reason[:1].upper()}{choice.reason[1:]}.")
    return dataclasses.replace(choice, preset=with_steps(choice.preset, int(steps), pixels_of(model, latent)))


def tables_now() -> str:
    """What differs once a table of presets is edited, for the nodes' fingerprints."""
    return str([stamp(str(path)) for path in (PATH, user_path())])
