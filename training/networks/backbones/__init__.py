"""One file a backbone: load, encode prompts, predict. `backbone: NAME` in a config is the file NAME.py here.

To add one: a file with a subclass of LatentDiffusion (latent_diffusion.py says what it must supply) and the line
`BACKBONE = ThatClass`.
"""

import importlib
from pathlib import Path

from ...errors import UserError, quoted_value
from .latent_diffusion import LatentDiffusion


def backbone_class(name: str) -> type[LatentDiffusion]:
    """The class of the file NAME.py. Raises UserError for a name without a file."""
    shared = {"__init__", "latent_diffusion", "schedule", "flow_schedule", "sources"}
    known = sorted({file.stem for file in Path(__file__).parent.glob("*.py")} - shared)
    if name not in known:
        raise UserError(f"backbone is {quoted_value(name)}; allowed is one of {', '.join(known)}.")
    return importlib.import_module(f".{name}", __package__).BACKBONE


def load_backbone(name: str, source: str, device="cpu", parts: str | None = None) -> LatentDiffusion:
    """A teacher, whole: `source` and `parts` as LatentDiffusion takes them. Raises UserError."""
    return backbone_class(name)(source, device, parts)
