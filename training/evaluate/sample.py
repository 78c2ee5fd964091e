"""Pictures from a run, an exported file or a diffusers folder, in one step, a few or many."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import torch

from ..errors import UserError, quoted, quoted_value
from ..method.warm_start import ddim_sample
from ..networks.backbones import LatentDiffusion, load_backbone
from ..networks.backbones.sources import is_hub_name
from ..networks.student import plain_student, student_origin
from ..networks.text import Text
from ..recipe.config import Start
from ..recipe.schema import block
from ..run.folder import open_run
from ..run.made_of import check_made_of, made_of
from ..run.preview import save_grid


def load_model(source: str, teacher: str | None = None, backbone: str | None = None) -> tuple[LatentDiffusion, Start]:
    """A backbone whose `network` is the model to sample from, and where it starts.

    `source`: run or checkpoint folder, exported .safetensors, or diffusers folder or hub name. `teacher`: the diffusers
    folder of the other parts, for a file whose metadata names none that is here. `backbone`: the file in
    training/networks/backbones, where neither a run nor the metadata says it. Raises UserError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = Path(source)
    if path.suffix == ".safetensors":
        told = _metadata(path)
        named = told.get("snoopi.base_model", "")
        if not (base := teacher or (named if is_hub_name(named) else "")):
            says = (
                f"was made from `{quoted(named)}`, which is no hub name"
                if named
                else "does not say what it was made from"
            )
            raise UserError(f"{quoted(source)} {says}; name the diffusers folder of that model with --teacher.")
        loaded = load_backbone(told.get("snoopi.backbone", backbone or "stable_diffusion"), base, device)
        loaded.network = loaded.load_network(source).requires_grad_(False).eval().to(device)
        return loaded, start_told(told, loaded.noises[0], f"{quoted(source)} (its metadata)")
    if (path / "config.yaml").is_file() or path.parent.name == "checkpoints":
        run = open_run(path)
        config = run.config
        loaded = load_backbone(config.backbone, teacher or config.teacher, device, config.teacher_parts)
        origin = student_origin(loaded, config.student)
        check_made_of(run.folder, made_of(loaded, origin=origin if config.student.start_from else None))
        loaded.network = plain_student(loaded, config.student, run.weights(), origin)
        return loaded, config.start
    loaded = load_backbone(backbone or "stable_diffusion", source, device)
    return loaded, Start(noise=loaded.noises[0])


@torch.no_grad()
def sample(
    backbone: LatentDiffusion,
    prompts: Sequence[str],
    count: int,
    seed: int,
    start: Start,
    steps: int | None = None,
    scale: float = 3.0,
) -> torch.Tensor:
    """x0 fp32 [prompts, count, c, h, w]; column i has the same noise for every prompt.

    The steps of a student from `start`, or `steps` of DDIM with CFG `scale` from the last timestep.
    """
    shape, random = (count, *backbone.latent_shape()), torch.Generator().manual_seed(seed)
    noises = [torch.randn(shape, generator=random).to(backbone.device) for _ in start.timesteps]
    null = backbone.encode([""]).repeat(count)

    def predict(x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        return backbone.predict(backbone.network, x_t, t, text)

    rows = []
    for prompt in prompts:
        text = backbone.encode([prompt]).repeat(count)
        if steps is None:
            rows.append(backbone.all_steps(backbone.network, noises, text, start))
        else:
            rows.append(ddim_sample(backbone.sampler, predict, noises[0], text, null, steps, scale))
    return torch.stack(rows)


def sample_to_file(backbone: LatentDiffusion, prompts: Sequence[str], output: str | Path, **options) -> None:
    """Draws the grid of `sample(**options)` as a PNG with labels. Raises UserError."""
    latents = sample(backbone, prompts, **options)
    if not bool(latents.isfinite().all()):
        raise UserError("The model answers NaN or infinite numbers; nothing was written: give another model or start.")
    pictures = backbone.decode(latents.flatten(0, 1))
    save_grid(output, list(prompts), pictures.reshape(*latents.shape[:2], *pictures.shape[1:]))


def start_told(told: Mapping[str, str], noise: str, place: str) -> Start:
    """Where a student starts by the metadata of its file, and its steps. noise: where they do not say which it is.

    Raises UserError that begins with `place`.
    """
    first = {"timestep": told.get("snoopi.start_timestep", 999), "noise": told.get("snoopi.start_noise", noise)}
    start = block(Start, first, lambda key: place, "snoopi.start_")
    if (listed := told.get("snoopi.timesteps")) is None:
        return start
    try:
        timestep, *later = map(int, listed.split(","))
        few = Start(timestep=timestep, noise=start.noise, steps=1 + len(later), later=later or None)
    except ValueError:  # no number, or a list that no student has
        few = None
    if few is None or timestep != start.timestep:
        raise UserError(
            f"{place}: snoopi.timesteps is {quoted_value(listed)}; it must be up to 8 whole numbers that fall from "
            f"snoopi.start_timestep, {start.timestep}: export the student again."
        )
    return few


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error)}; the file is missing or damaged.") from None
