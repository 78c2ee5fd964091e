"""Pictures from a run, an exported file or a diffusers folder, in one step or many."""

from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch

from .backbones.stable_diffusion import StableDiffusion
from .config import Start
from .errors import UserError
from .export.verify import load_unet
from .preview import save_grid
from .runs import open_run
from .warm_start import ddim_sample


def load_model(source: str, teacher: str | None = None) -> tuple[StableDiffusion, Start]:
    """A backbone whose `unet` is the model to sample from, and where its one step starts.

    `source`: run or checkpoint folder, exported .safetensors, or diffusers folder or hub name. `teacher`: the diffusers
    folder of the other parts, for a file whose metadata names none that is here. Raises UserError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = Path(source)
    if path.suffix == ".safetensors":
        told = _metadata(path)
        base = teacher or told.get("snoopi.base_model")
        if not base:
            raise UserError(
                f"{source} does not say which model it was made from; name its diffusers folder with --teacher."
            )
        backbone = StableDiffusion(base, device)
        load_unet(path, backbone.unet)
        start = Start(
            timestep=int(told.get("snoopi.start_timestep", 999)), noise=told.get("snoopi.start_noise", "unit")
        )
        return backbone, start
    if (path / "config.yaml").is_file() or path.parent.name == "checkpoints":
        run = open_run(path)
        backbone = StableDiffusion(teacher or run.config.teacher, device)
        backbone.unet.load_state_dict(run.weights())
        return backbone, run.config.start
    return StableDiffusion(source, device), Start()


@torch.no_grad()
def sample(
    backbone: StableDiffusion,
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
    null = backbone.encode([""]).expand(count, -1, -1)

    def predict(x_t: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return backbone.predict(backbone.unet, x_t, t, text)

    rows = []
    for prompt in prompts:
        text = backbone.encode([prompt]).expand(count, -1, -1)
        if steps == 1:
            rows.append(backbone.one_step(backbone.unet, noises, text, start.timestep, start.noise))
        else:
            rows.append(ddim_sample(backbone.sampler, predict, noises, text, null, steps, scale))
    return torch.stack(rows)


def sample_to_file(backbone: StableDiffusion, prompts: Sequence[str], output: str | Path, **options) -> None:
    """Draws the grid of `sample(**options)` as a PNG with labels. Raises UserError."""
    latents = sample(backbone, prompts, **options)
    pictures = backbone.decode(latents.flatten(0, 1))
    save_grid(output, list(prompts), pictures.reshape(*latents.shape[:2], *pictures.shape[1:]))


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {path}: {error}; the file is missing or damaged.") from None
