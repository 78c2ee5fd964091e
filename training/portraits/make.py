"""The portraits model from nothing: drawings -> detector, autoencoder, teacher -> PG-SB -> one-step student -> weights.

Every stage keeps what it has done in the working folder, so that the same command goes on after an interruption.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel

from ..networks.backbones.stable_diffusion3 import StableDiffusion3
from ..shapes import text
from ..shapes.sampling import by_student, many_steps
from ..shapes.student import make_student
from . import autoencoder, detector, teacher, weights
from .latent_code import distance
from .measurement import OPEN, accuracy_captions, matches, right, shares
from .world import draw_caption, draw_items

TEACHER_STEPS, TEACHER_SCALES = 25, (1.0, 1.5, 2.0)
PICTURES, OPEN_PICTURES, FRESH = 500, 200, 1000
PROMPTS = 4000


def prompts() -> list[str]:
    """The prompts of the distillation: drawn captions, as often as they were drawn, less the empty one."""
    random = np.random.RandomState(3)
    drawn = [draw_caption(random, item) for item in draw_items(random, PROMPTS)]
    return [caption for caption in drawn if caption]


def make_teacher(folder: Path) -> Path:
    """A diffusers folder with the trained teacher, as `python -m training distill` reads it."""
    target = folder / "teacher"
    network = teacher.train(folder / "teacher-narrow" / "transformer")
    autoencoder.train(target / "vae")
    if not (target / "scheduler").exists():
        teacher.widened(network).save_pretrained(target / "transformer")
        text.text_encoder().save_pretrained(target / "text_encoder")
        text.tokenizer().save_pretrained(target / "tokenizer")
        teacher.scheduler().save_pretrained(target / "scheduler")
    (folder / "prompts.txt").write_text("\n".join(prompts()) + "\n")
    return target


class Figures:
    """What is measured on teacher and student."""

    def __init__(self, backbone: StableDiffusion3, reader: detector.Detector):
        self.backbone, self.reader = backbone, reader

    def read(self, latents: torch.Tensor) -> list[detector.Reading]:
        return detector.read(self.backbone.decode(latents), self.reader)

    def accuracy(self, latents: torch.Tensor, captions: list[str]) -> float:
        """Share of pictures that show all that their caption names."""
        readings = self.read(latents)
        hits = [matches(reading, caption) for reading, caption in zip(readings, captions, strict=True)]
        return sum(hits) / len(hits)

    def of_teacher(self) -> dict:
        """At the best of a few CFG scales, which is chosen on fewer pictures."""
        captions = accuracy_captions(PICTURES)

        def made(scale: float, count: int) -> float:
            few = captions[:count]
            return self.accuracy(many_steps(self.backbone, few, TEACHER_STEPS, scale), few)

        tried = {scale: made(scale, 100) for scale in TEACHER_SCALES}
        best = max(tried, key=tried.get)
        accuracy = made(best, PICTURES)
        return {"teacher_accuracy": accuracy, "teacher_guidance_scale": best, "teacher_steps": TEACHER_STEPS}

    def of_one_step(self, network: SD3Transformer2DModel, start, name: str) -> dict:
        """Captions followed, distance to the nearest portrait, and who comes where the prompt leaves it open."""
        captions = accuracy_captions(PICTURES)
        latents = by_student(self.backbone, network, start, captions)
        opened = {}
        for prompt in OPEN:
            readings = self.read(by_student(self.backbone, network, start, [prompt] * OPEN_PICTURES, seed=1))
            opened[prompt] = shares(readings, "who")
        return {
            f"{name}_accuracy": self.accuracy(latents, captions),
            f"{name}_distance": float(distance(latents).mean()),
            f"{name}_who": opened,
        }


def make_model(folder: Path, target: Path = weights.FOLDER) -> dict:
    """Run every stage that ``folder`` does not hold yet and write the weights to ``target``; returns the record.

    About an hour and a half on two cores; the stages and their checkpoints stay in ``folder``. Raises UserError.
    """
    torch.set_flush_denormal(True)
    reader = detector.train(folder / detector.FILE)
    source, exported = make_teacher(folder), folder / "snoopi-portraits.safetensors"
    settings, told = make_student(source, folder, weights.CONFIG, exported)

    backbone = StableDiffusion3(str(source))
    student = SD3Transformer2DModel.from_single_file(
        str(exported), config=str(source / "transformer"), local_files_only=True
    )
    figures = Figures(backbone, reader)
    record = {
        "detector_accuracy": fresh_accuracy(reader),
        **figures.of_teacher(),
        **figures.of_one_step(backbone.network, settings.start, "teacher_one_step"),
        **figures.of_one_step(student.float().eval(), settings.start, "student"),
        "pictures": PICTURES,
        "teacher": asdict(teacher.SETTINGS),
        "autoencoder": {
            "steps": [autoencoder.DECODER_STEPS, autoencoder.ENCODER_STEPS],
            "batch": autoencoder.BATCH,
            "learning_rate": autoencoder.LEARNING_RATE,
        },
        **told,
    }
    weights.commit(exported, folder / detector.FILE, record, target)
    return record


def fresh_accuracy(reader: detector.Detector, count: int = FRESH, seed: int = 5) -> float:
    """Share of all attributes that the detector reads right on drawings that it was not trained on."""
    pictures, items = detector.drawings(count, seed)
    return right(detector.read(pictures, reader), items)
