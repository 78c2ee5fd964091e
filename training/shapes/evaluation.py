"""The paper's tables on the demo world: `python -m training.shapes evaluate`, or `make evaluate`.

    FOLDER/student/             the shipped student as a diffusers folder
    FOLDER/reference/           all 480 pictures of the world, painted
    FOLDER/teacher_KAPPA/       pictures of the exact denoiser by its guidance scale: no network, no error of training
    FOLDER/runs/CELL_SEED/      PG-SB by configs/shapes.yaml, one thing changed (needs `make demo-model`)
    FOLDER/RECIPE/              pictures, result.json and table.md of each recipe

Every step keeps what it has done; the same command goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from PIL import Image
from torch import Tensor

from ..distill import distill
from ..errors import UserError
from ..evaluate.draw import draw
from ..evaluate.painter import noise_of
from ..evaluate.prompt_set import Prompt, read_prompt_set
from ..evaluate.recipe import Recipe, load_recipe
from ..evaluate.table import draw_all, score_all
from ..export.stable_diffusion import VAE
from ..export.verify import load_unet
from ..files import atomic_folder
from ..method.warm_start import ddim_sample
from ..networks.text import Text
from ..recipe import config as configuration
from ..recipe.shipped import DEMO_FOLDER
from ..run.progress import StopSignal
from . import autoencoder, teacher, text, weights
from .make import TEACHER_STEPS
from .world import CAPTIONS, ITEMS, paint

KAPPAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
CHEAP = ("shapes_table1", "shapes_table7", "shapes_harm")
SEEDS = (0, 1, 2)
#: Table 2's cells and Figure 2's methods: what differs from configs/shapes.yaml. The fixed scale is kappa's mean.
CELLS = {
    "none": ("cfg_on=none", "fixed_kappa=2.25"),
    "teacher": ("cfg_on=teacher", "fixed_kappa=2.25"),
    "lora": ("cfg_on=lora", "fixed_kappa=2.25"),
    "both": (),
    "two_time_scale": ("cfg_on=none", "fixed_kappa=2.25", "lora.updates=5"),
    "nasa_t": ("nasa.alpha=[0.0, 1.0]", "nasa.prompts=training/evaluate/prompts/shapes_negatives.txt"),
}


def evaluate(folder: Path, count: int | None, trained: bool) -> list[str]:
    """The tables. trained: those too whose students are trained first, hours. Raises UserError."""
    torch.set_flush_denormal(True)
    stop = StopSignal()
    student_folder(folder / "student")
    write_reference(folder / "reference")
    for kappa in KAPPAS:
        draw_teacher(folder, kappa, count, stop)
    names = list(CHEAP)
    if trained:
        train_cells(folder)
        names += [f"shapes_table2_seed{seed}" for seed in SEEDS]
    tables = []
    for name in names:
        recipe, output = recipe_of(name, folder), folder / name
        draw_all(recipe, output, count, stop=stop)
        tables.append(score_all(recipe, output, folder, count))
    return tables


def recipe_of(name: str, folder: Path) -> Recipe:
    """A shapes recipe with its models in `folder`."""
    plain, _, seed = name.partition("_seed")
    recipe = load_recipe(plain)
    place = {role: model.path.replace("SEED", seed) for role, model in recipe.models.items()}
    return recipe.with_models([f"{role}={folder / path}" for role, path in place.items()])


def student_folder(folder: Path) -> Path:
    """The shipped student, written once as `evaluate` and `sample` read it. Raises UserError."""
    if folder.exists():
        return folder
    with atomic_folder(folder) as made:
        unet = teacher.untrained()
        weights.read_part("unet.safetensors")  # that it is the recorded one
        load_unet(weights.FOLDER / "unet.safetensors", unet)
        unet.save_pretrained(made / "unet")
        shipped_autoencoder().save_pretrained(made / "vae")
        text.text_encoder().save_pretrained(made / "text_encoder")
        text.tokenizer().save_pretrained(made / "tokenizer")
        teacher.scheduler().save_pretrained(made / "scheduler")
    return folder


def shipped_autoencoder() -> AutoencoderTiny:
    """Raises UserError."""
    part, _ = weights.read_part("autoencoder.safetensors")
    state = {}
    for key, tensor in part.items():
        if (name := key.removeprefix(VAE + "taesd_")) != key:
            kind, index, rest = name.split(".", 2)
            state[f"{kind}.layers.{int(index) - (kind == 'decoder')}.{rest}"] = tensor.float()
    network = autoencoder.untrained()
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def write_reference(folder: Path) -> None:
    """Every picture of the world."""
    if not folder.exists():
        with atomic_folder(folder) as made:
            for number, item in enumerate(ITEMS):
                Image.fromarray(paint(item)).save(made / f"{number:03d}.png")


@dataclass(frozen=True)
class ExactTeacher:
    """The world's own denoiser as a teacher: E[x0 | x_t, caption], eps from it, sampled by DDIM with guidance."""

    world: teacher.World
    sampler: DDIMScheduler
    vae: AutoencoderTiny

    def predict(self, x: Tensor, t: Tensor, captions: Text) -> Tensor:
        """eps fp32 [n, 4, 4, 4]; captions hold places in CAPTIONS."""
        cumulative = self.sampler.alphas_cumprod[t].float()
        alpha, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
        x0 = self.world.denoise(x, alpha, sigma, captions.embeddings[:, 0, 0].long())
        return (x - alpha.view(-1, 1, 1, 1) * x0) / sigma.view(-1, 1, 1, 1)

    def paint(self, prompts: Sequence[Prompt], kappa: float) -> np.ndarray:
        """uint8 [n, 32, 32, 3]. Raises UserError for a prompt that is no caption of the world."""
        z = torch.stack([noise_of(0, prompt.id, (4, 4, 4)) for prompt in prompts])
        known = {caption.text(): place for place, caption in enumerate(CAPTIONS)}
        if odd := [prompt.prompt for prompt in prompts if prompt.prompt not in known]:
            raise UserError(f"`{odd[0]}` is no caption of the demo world.")
        places = torch.tensor([float(known[prompt.prompt]) for prompt in prompts]).view(-1, 1, 1)
        words, null = Text(places), Text(torch.zeros_like(places))
        return autoencoder.decode(
            self.vae, ddim_sample(self.sampler, self.predict, z, words, null, TEACHER_STEPS, kappa)
        )


def draw_teacher(folder: Path, kappa: float, count: int | None, stop: Callable[[], bool]) -> None:
    recipe = load_recipe("shapes_table1")
    prompts = read_prompt_set(recipe.prompts, recipe.folder, count)
    exact = ExactTeacher(teacher.World(), teacher.scheduler(), shipped_autoencoder())
    told = {"model": "the world's exact denoiser", "guidance": kappa, "steps": TEACHER_STEPS, "weights_sha256": None}
    where = folder / f"teacher_{kappa:g}"
    draw(where, lambda part: exact.paint(part, kappa), told, prompts, 48, None, stop=stop)


def train_cells(folder: Path) -> None:
    """The runs of Table 2, Figure 2 and NASA-T, three seeds each. Raises UserError without the demo's teacher."""
    source = Path(DEMO_FOLDER)
    if not (source / "teacher" / "unet").is_dir():
        raise UserError(f"There is no {source / 'teacher'}; run `make demo-model` first, which trains it.")
    for seed in SEEDS:
        for cell, changes in CELLS.items():
            run = folder / "runs" / f"{cell}_{seed}"
            settings = configuration.load(weights.CONFIG, str(run), [*changes, f"seed={seed}"])
            if not (run / "checkpoints" / f"step-{settings.total_steps:08d}").exists():
                distill(settings, resume=(run / "config.yaml").exists())
