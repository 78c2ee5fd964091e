"""The demo model from nothing: pictures -> autoencoder -> teacher -> PG-SB -> one-step student -> committed weights.

Every stage keeps what it has done in the working folder, so that the same command goes on after an interruption.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from ..export.verify import load_unet
from ..networks.backbones.stable_diffusion import StableDiffusion
from . import autoencoder, detector, teacher, text, weights
from .measurement import ALPHA, accuracy_captions, matches, share_of_colors
from .sampling import by_student, many_steps
from .student import make_student
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


def accuracy(backbone: StableDiffusion, latents: torch.Tensor, captions: list[str]) -> float:
    """Share of pictures that show the named color and shape."""
    readings = detector.read(backbone.decode(latents))
    return sum(matches(reading, caption) for reading, caption in zip(readings, captions, strict=True)) / len(captions)


def teacher_accuracy(backbone: StableDiffusion, scale: float, count: int = PICTURES) -> float:
    """Share of ``count`` pictures by 25 steps of DDIM at CFG ``scale`` that show the named color and shape."""
    captions = accuracy_captions(count)
    return accuracy(backbone, many_steps(backbone, captions, TEACHER_STEPS, scale), captions)


def student_figures(backbone: StableDiffusion, student, start) -> dict:
    """The two figures that the demo measures again in ComfyUI."""
    captions = accuracy_captions(PICTURES)
    right = accuracy(backbone, by_student(backbone, student, start, captions), captions)
    latents = by_student(backbone, student, start, ["a colored circle"] * PICTURES, seed=1)
    return {"student_accuracy": right, "student_colors": share_of_colors(detector.read(backbone.decode(latents)))}


def make_model(folder: Path, target: Path = weights.FOLDER) -> dict:
    """Run every stage that ``folder`` does not hold yet and write the weights to ``target``; returns the record.

    Over an hour on two cores; the stages and their checkpoints stay in ``folder``. Raises UserError.
    """
    torch.set_flush_denormal(True)
    source, exported = make_teacher(folder), folder / "snoopi-shapes.safetensors"
    settings, told = make_student(source, folder, weights.CONFIG, exported)

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
        "teacher": [asdict(teacher.FIRST), asdict(teacher.SECOND)],
        "autoencoder": {
            "steps": [autoencoder.STEPS, autoencoder.DECODER_STEPS],
            "batch": autoencoder.BATCH,
            "learning_rate": autoencoder.LEARNING_RATE,
        },
        **told,
    }
    weights.commit(exported, record, target)
    return record
