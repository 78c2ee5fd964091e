"""The demo model from nothing: pictures -> autoencoder -> teacher -> PG-SB -> one-step student -> committed weights.

Every stage keeps what it has done in the working folder, so that the same command goes on after an interruption.
"""

import platform
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from ..distill import distill
from ..export import export
from ..export.verify import load_unet
from ..method.warm_start import ddim_sample
from ..networks.backbones.stable_diffusion import StableDiffusion
from ..networks.text import Text
from ..recipe import config as configuration
from . import autoencoder, detector, teacher, text, weights
from .measurement import ALPHA, accuracy_captions, matches, share_of_colors
from .world import CAPTIONS

TEACHER_STEPS, TEACHER_SCALES = 25, (1.0, 1.5, 2.0)
PICTURES = 500


def prompts() -> list[str]:
    """The prompts of the distillation: every caption but the empty one, those of few words more often."""
    lines = []
    for caption in CAPTIONS[1:]:
        long = caption.size or caption.background or caption.bare or " or " in caption.text()
        lines += [caption.text()] * (1 if long else 6)
    return lines


def make_teacher(folder: Path) -> Path:
    """A diffusers folder with the trained teacher, as `python -m training distill` reads it."""
    target = folder / "teacher"
    autoencoder.train(target / "vae")
    first = folder / "teacher-first" / "unet"
    teacher.train(first, teacher.FIRST)
    teacher.train(target / "unet", teacher.SECOND, first)
    if not (target / "scheduler").exists():
        text.text_encoder().save_pretrained(target / "text_encoder")
        text.tokenizer().save_pretrained(target / "tokenizer")
        teacher.scheduler().save_pretrained(target / "scheduler")
    (folder / "prompts.txt").write_text("\n".join(prompts()) + "\n")
    return target


@torch.no_grad()
def teacher_accuracy(backbone: StableDiffusion, scale: float, count: int = PICTURES, seed: int = 0) -> float:
    """Share of ``count`` pictures by 25 steps of DDIM at CFG ``scale`` that show the named color and shape."""
    captions = accuracy_captions(count)
    noise = torch.randn(count, *backbone.latent_shape(), generator=torch.Generator().manual_seed(seed))
    embeddings = backbone.encode(sorted(set(captions)))
    where = {caption: index for index, caption in enumerate(sorted(set(captions)))}
    null = backbone.encode([""])

    def predict(x, t, words):
        return backbone.predict(backbone.network, x, t, words)

    latents = []
    for first in tqdm(range(0, count, 50), desc=f"teacher, {TEACHER_STEPS} steps, CFG {scale:g}"):
        words = embeddings[[where[caption] for caption in captions[first : first + 50]]]
        part = noise[first : first + 50]
        empty = null.repeat(len(words))
        latents.append(ddim_sample(backbone.sampler, predict, part, words, empty, TEACHER_STEPS, scale))
    readings = detector.read(backbone.decode(torch.cat(latents)))
    return sum(matches(reading, caption) for reading, caption in zip(readings, captions, strict=True)) / count


@torch.no_grad()
def student_pictures(backbone: StableDiffusion, student, start, captions: list[str], seed: int = 0) -> list:
    """Readings of one picture a caption, by one step."""
    noise = torch.randn(len(captions), *backbone.latent_shape(), generator=torch.Generator().manual_seed(seed))
    words = {caption: backbone.encode([caption]) for caption in sorted(set(captions))}
    latents = []
    for first in range(0, len(captions), 50):
        embeddings = Text.join(*(words[caption] for caption in captions[first : first + 50]))
        latents.append(backbone.one_step(student, noise[first : first + 50], embeddings, start.timestep, start.noise))
    return detector.read(backbone.decode(torch.cat(latents)))


def student_figures(backbone: StableDiffusion, student, start) -> dict:
    """The two figures that the demo measures again in ComfyUI."""
    captions = accuracy_captions(PICTURES)
    readings = student_pictures(backbone, student, start, captions)
    right = sum(matches(reading, caption) for reading, caption in zip(readings, captions, strict=True))
    colors = share_of_colors(student_pictures(backbone, student, start, ["a colored circle"] * PICTURES, seed=1))
    return {"student_accuracy": right / PICTURES, "student_colors": colors}


def make_model(folder: Path, target: Path = weights.FOLDER) -> dict:
    """Run every stage that ``folder`` does not hold yet and write the weights to ``target``; returns the record.

    Over an hour on two cores; the stages and their checkpoints stay in ``folder``. Raises UserError.
    """
    torch.set_flush_denormal(True)
    source, run, exported = make_teacher(folder), folder / "student", folder / "snoopi-shapes.safetensors"
    recipe = configuration.to_dict(configuration.load(weights.CONFIG))
    paths = {"teacher": str(source), "prompts": str(folder / "prompts.txt"), "output": str(run)}
    settings = configuration.parse(recipe | paths, str(weights.CONFIG))
    if not (run / "checkpoints" / f"step-{settings.total_steps:08d}").exists():
        distill(settings, resume=(run / "config.yaml").exists())
    export(run, exported, half=True, title="SNOOPI shapes")

    backbone = StableDiffusion(str(source))
    tried = {scale: teacher_accuracy(backbone, scale, 96) for scale in TEACHER_SCALES}
    best = max(tried, key=tried.get)
    teacher_figures = {
        "teacher_accuracy": teacher_accuracy(backbone, best),
        "teacher_guidance_scale": best,
        "teacher_steps": TEACHER_STEPS,
    }
    student = teacher.untrained()
    load_unet(exported, student)
    record = {
        **teacher_figures,
        **student_figures(backbone, student.eval(), settings.start),
        "pictures": PICTURES,
        "alpha": ALPHA,
        "start": asdict(settings.start),
        "teacher": [asdict(teacher.FIRST), asdict(teacher.SECOND)],
        "autoencoder": {
            "steps": [autoencoder.STEPS, autoencoder.DECODER_STEPS],
            "batch": autoencoder.BATCH,
            "learning_rate": autoencoder.LEARNING_RATE,
        },
        "distillation": recipe,
        "text_encoder_seed": text.SEED,
        "made_with": f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}",
    }
    weights.commit(exported, record, target)
    return record
