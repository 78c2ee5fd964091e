"""Pictures from a run, an exported file or a diffusers folder, in one step or many."""

from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch

from ..errors import UserError, quoted
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
    """A backbone whose `network` is the model to sample from, and where its one step starts.

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
        noise = told.get("snoopi.start_noise", loaded.noises[0])
        start = {"timestep": told.get("snoopi.start_timestep", 999), "noise": noise}
        return loaded, block(Start, start, lambda key: f"{quoted(source)} (its metadata)", "snoopi.start_")
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
    steps: int = 1,
    scale: float = 3.0,
) -> torch.Tensor:
    """x0 fp32 [prompts, count, c, h, w]; column i has the same noise for every prompt.

    One step from `start`, or `steps` of DDIM with CFG `scale` from the last timestep.
    """
    noises = torch.randn((count, *backbone.latent_shape()), generator=torch.Generator().manual_seed(seed)).to(
        backbone.device
    )
    null = backbone.encode([""]).repeat(count)

    def predict(x_t: torch.Tensor, t: torch.Tensor, text: Text) -> torch.Tensor:
        return backbone.predict(backbone.network, x_t, t, text)

    rows = []
    for prompt in prompts:
        text = backbone.encode([prompt]).repeat(count)
        if steps == 1:
            rows.append(backbone.one_step(backbone.network, noises, text, start.timestep, start.noise))
        else:
            rows.append(ddim_sample(backbone.sampler, predict, noises, text, null, steps, scale))
    return torch.stack(rows)


def sample_to_file(backbone: LatentDiffusion, prompts: Sequence[str], output: str | Path, **options) -> None:
    """Draws the grid of `sample(**options)` as a PNG with labels. Raises UserError."""
    latents = sample(backbone, prompts, **options)
    if not bool(latents.isfinite().all()):
        raise UserError("The model answers NaN or infinite numbers; nothing was written: give another model or start.")
    pictures = backbone.decode(latents.flatten(0, 1))
    save_grid(output, list(prompts), pictures.reshape(*latents.shape[:2], *pictures.shape[1:]))


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error)}; the file is missing or damaged.") from None
