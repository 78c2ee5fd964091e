"""The model card beside an exported file, README.md, as model hubs read it: only what is known, and no address.

A card that somebody else wrote, or changed, is never replaced: then ours is FILE.README.md.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote

import yaml

from ..files import atomic_file
from ..networks.backbones.sources import is_hub_name
from ..recipe import config as configs
from ..run.folder import Run
from .families import LAYOUTS, Layout
from .headers import Shapes, family_told, kind_of
from .inspect import merged_of, told
from .metadata import LICENCE_UNKNOWN, public_name

NETWORK = "diffusion_models", "Load it with *SNOOPI Checkpoint Loader*, text encoder and VAE from the base model."
FOLDERS: dict[Layout, tuple[str, str]] = {
    "checkpoint": ("checkpoints", "Load it with *SNOOPI Checkpoint Loader*."),
    "unet": NETWORK,
    "transformer": NETWORK,
    "lora": ("loras", "Load the base model, or a checkpoint made from it, and behind it this file with *Load LoRA*."),
}
#: How a file's kind (headers.py) tells its layout.
KINDS: tuple[tuple[str, Layout], ...] = (
    ("LoRA", "lora"),
    ("whole checkpoint", "checkpoint"),
    ("UNet", "unet"),
    ("transformer", "transformer"),
)
MARK = "<!-- the card of {name} by ComfyUI-SNOOPI, {digest} -->"
UNKNOWN = "unknown: neither its folder nor its card names one; find it out before you share this file"
NOT_SAMPLING = ("training", "merged", "metadata")  # in what `inspect` tells
RUN_ONLY = configs.FREE_TO_CHANGE - {"steps"} | {"encoded_prompts"}  # settings that change nothing of a model


def write_card(
    output: Path,
    header: tuple[Shapes, dict[str, str]],
    run: Run | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path | None:
    """Writes the card of an exported file, and beside it the run's newest sample grid, if there is one.

    header: of the file. run: where it comes from, unless it is a mean. Returns the card's path, None where a card of
    the user's has both its names. Raises UserError (disk).
    """
    grid, step = _newest_grid(run) if run else (None, 0)
    if grid:
        picture = output.with_name(f"{output.stem}.samples.png")
        with atomic_file(picture) as temporary:
            shutil.copyfile(grid, temporary)
        grid = picture
    text = card(output.name, *header, run, (grid.name, step) if grid else None)
    content = f"{text}\n{MARK.format(name=output.name, digest=_digest(text))}\n"
    for path in (output.with_name("README.md"), output.with_name(f"{output.stem}.README.md")):
        if not path.exists() or _is_ours(path, output.name):
            with atomic_file(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
            tell(f"Its model card: {path}")
            return path
    tell(f"No model card: README.md and {output.stem}.README.md beside it are your own.")
    return None


def card(name: str, shapes: Shapes, metadata: dict[str, str], run: Run | None, picture: tuple[str, int] | None) -> str:
    """The text. name: of the file. picture: file name of the sample grid, and the step that drew it."""
    layout = next((layout for kind, layout in KINDS if kind_of(shapes).startswith(kind)), "checkpoint")
    folder, load = FOLDERS[layout]
    base, licence = metadata.get("snoopi.base_model", ""), _licence(metadata)
    front = {
        **({"license": licence} if re.fullmatch("[a-z0-9.-]+", licence) else {}),
        **({"base_model": base} if is_hub_name(base) else {}),  # of a folder it is the last part alone
        "pipeline_tag": "text-to-image",
        "tags": ["snoopi", "pg-sb", "comfyui", *(["lora"] if layout == "lora" else [])],
    }
    sampling = list(takewhile(lambda line: not line.startswith(NOT_SAMPLING), told(metadata)))
    family = family_told(shapes)
    about = [
        f"- Base model: {_plain(base) or 'not known'}",
        f"- Licence of the base model: {_plain(licence) or UNKNOWN}",
        f"- File: `{name}`, {LAYOUTS[layout]}{f'; {family}' if family else ''}",
    ]
    use = [
        f"1. Put `{name}` into ComfyUI's `models/{folder}`, and install ComfyUI-SNOOPI.",
        f"2. {load}",
        "3. Sample with *SNOOPI One-Step Sampler*, preset `auto`. *NASA Cross-Attention Patch* before it gives the "
        "model its negative prompt.",
    ]
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {_plain(metadata.get('modelspec.title', name))}",
        _plain(metadata.get("modelspec.description", "")),
        *(_picture(*picture) if picture else []),
        "\n".join(about),
        "## In ComfyUI",
        "\n".join(use),
        *(_sampling(sampling) if sampling else ["The file says nothing of itself: choose a preset."]),
        "## Recipe",
        _recipe(run) if run else "\n".join(f"- {_plain(share)}" for share in merged_of(metadata)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _sampling(lines: list[str]) -> list[str]:
    return ["`auto` runs what the file says of itself:", "\n".join(["```text", *lines, "```"])]


def _picture(name: str, step: int) -> list[str]:
    told = f"*Drawn by the run itself at step {step}: a row a prompt, a column a noise.*"
    return [f"![What it draws]({quote(name)})", told]


def _recipe(run: Run) -> str:
    config, step = run.config, run.checkpoint.state["step"]
    settings = configs.to_dict(config)
    for key, value in list(configs.flat(config)):
        *blocks, last = key.split(".")
        inside = settings
        for block in blocks:
            inside = inside[block]
        if key in RUN_ONLY:
            del inside[last]
        elif key in configs.COMPARED_BY_CONTENTS and isinstance(value, str):
            inside[last] = public_name(value)  # of a folder of whoever trained it the last part alone
    listed = yaml.safe_dump({key: value for key, value in settings.items() if value != {}}, sort_keys=False)
    return (
        f"PG-SB (SNOOPI, arXiv 2412.02687), {step} of {config.total_steps} steps of {config.batch_size}, kappa "
        f"{config.kappa[0]:g} to {config.kappa[1]:g}; a {'LoRA' if config.student.lora else 'student of all weights'} "
        f"at {config.student.learning_rate:g}.\n\n<details><summary>All settings</summary>\n\n```yaml\n{listed}```\n\n"
        f"</details>"
    )


def _newest_grid(run: Run) -> tuple[Path | None, int]:
    """The sample grid of the run that is no newer than its checkpoint, and its step."""
    steps = [
        int(found[1])
        for path in (run.folder / "samples").glob("step-*.png")
        if (found := re.fullmatch(r"step-(\d{8,18})\.png", path.name, re.ASCII))
    ]
    known = [step for step in steps if step <= run.checkpoint.state["step"]]
    return (run.folder / "samples" / f"step-{max(known):08d}.png", max(known)) if known else (None, 0)


def _licence(metadata: dict[str, str]) -> str:
    """ "" where it is not known."""
    licence = metadata.get("snoopi.base_model_license", "")
    return "" if licence == LICENCE_UNKNOWN else licence


def _plain(text: str) -> str:
    """A text of the user's as plain Markdown of one line."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _is_ours(path: Path, name: str) -> bool:
    """Whether we wrote it, for that file, and nobody changed it since."""
    try:
        text, mark = path.read_text(encoding="utf-8").rsplit("\n", 2)[:2]
    except (OSError, ValueError):
        return False
    return mark == MARK.format(name=name, digest=_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
