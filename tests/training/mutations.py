"""Do the tests notice when the trainer's mathematics is wrong? Each mutation is applied to a copy of the tree.

    python -P tests/training/mutations.py [--tests FILE ...] [NUMBER ...]

Prints a table: which test fails, or that none does. Exit code 1 where a mutation survives or no longer fits the code.
"""

import argparse
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import accelerate  # noqa: F401  slow to import: here once instead of for each mutation
import peft  # noqa: F401
import pytest
from diffusers import AutoencoderKL, AutoencoderTiny, PixArtTransformer2DModel, UNet2DConditionModel  # noqa: F401
from transformers import AutoTokenizer, CLIPModel, CLIPTextModel, CLIPTokenizer, T5EncoderModel  # noqa: F401

REPOSITORY = Path(__file__).parents[2]
TESTS = ["test_anchor.py", "test_losses.py"]


@dataclass(frozen=True)
class Mutation:
    """`old`, which must occur once in training/`file`, becomes `new`."""

    breaks: str
    old: str
    new: str
    file: str = "distill.py"


MUTATIONS = [
    # the student's update
    Mutation(
        "vsd_loss's arguments exchanged",
        "vsd_loss(x0, eps_teacher, eps_lora,",
        "vsd_loss(x0, eps_lora, eps_teacher,",
        "method/student_update.py",
    ),
    Mutation(
        "another kappa for the LoRA teacher",
        "kappa_lora = of_lora if",
        "kappa_lora = of_lora / 2 + 1 if",
        "method/guidance.py",
    ),
    Mutation(
        "kappa not from its range",
        "low + (high - low) * torch.rand((count",
        "low + high * torch.rand((count",
        "method/guidance.py",
    ),
    Mutation(
        "one sample's kappa for another",
        "one[rows if self.per",
        "one.flip(0)[rows if self.per",
        "method/guidance.py",
    ),
    Mutation(
        "CFG counts kappa from the text",
        "eps_null + kappa * (eps_text",
        "eps_text + kappa * (eps_text",
        "method/guidance.py",
    ),
    Mutation(
        "cfg_on: teacher read as lora",
        'self.on in ("both", "teacher")',
        'self.on in ("both", "lora")',
        "method/guidance.py",
    ),
    Mutation(
        "LoRA on in the frozen teacher",
        "guided(self.teachers.frozen,",
        "guided(self.teachers.lora,",
        "method/student_update.py",
    ),
    Mutation(
        "LoRA off in the LoRA teacher",
        "guided(self.teachers.lora,",
        "guided(self.teachers.frozen,",
        "method/student_update.py",
    ),
    Mutation(
        "VSD's t from LoRA's range",
        "draws.timesteps(self.settings.timesteps)",
        "draws.timesteps((0, 999))",
        "method/student_update.py",
    ),
    Mutation(
        "VSD's noise is the student's own",
        "noise[rows].to(device)",
        "step.z[rows].to(device)",
        "method/student_update.py",
    ),
    Mutation(
        "VSD's weight fixed",
        "VSD_WEIGHTS[self.settings.weight]",
        'VSD_WEIGHTS["sigma_squared"]',
        "method/student_update.py",
    ),
    Mutation("VSD's weight is sigma", "return sigma.square()", "return sigma", "method/losses.py"),
    Mutation("VSD's gradient twice", "0.5 * _mean_square", "_mean_square", "method/losses.py"),
    Mutation(
        "VSD's target is not fixed",
        "(eps_teacher - eps_lora)).detach()",
        "(eps_teacher - eps_lora))",
        "method/losses.py",
    ),
    Mutation(
        "alpha_t and sigma_t exchanged in x_t",
        "alpha * x0.float() + sigma * noise",
        "sigma * x0.float() + alpha * noise",
        "networks/backbones/latent_diffusion.py",
    ),
    Mutation(
        "v read as its opposite",
        "alpha * said + sigma * x_t",
        "sigma * x_t - alpha * said",
        "networks/parameterization.py",
    ),
    Mutation(
        "vp noise read as unit",
        'z.float() if noise == "unit" else sigma * z.float()',
        "z.float()",
        "networks/backbones/latent_diffusion.py",
    ),
    Mutation(
        "a flow model's velocity read as its opposite",
        "x_t + alpha * said",
        "x_t - alpha * said",
        "networks/parameterization.py",
    ),
    Mutation(
        "SD 3 is told no pooled text",
        "_padded(text.pooled, config.pooled_projection_dim)",
        "_padded(0 * text.pooled, config.pooled_projection_dim)",
        "networks/backbones/stable_diffusion3.py",
    ),
    Mutation(
        "SDXL is told width for height",
        "height, width = (8.0 * side",
        "width, height = (8.0 * side",
        "networks/backbones/stable_diffusion_xl.py",
    ),
    Mutation(
        "SDXL is told a picture in latents",
        "(8.0 * side for",
        "(1.0 * side for",
        "networks/backbones/stable_diffusion_xl.py",
    ),
    Mutation(
        "SDXL is told no pooled text",
        '"text_embeds": text.pooled',
        '"text_embeds": 0 * text.pooled',
        "networks/backbones/stable_diffusion_xl.py",
    ),
    # CLIP
    Mutation(
        "CLIP's weight never falls",
        "falling_weight(self.settings.weight, self.settings.final_weight, *progress)",
        "self.settings.weight",
        "method/clip.py",
    ),
    Mutation(
        "CLIP's weight falls by another curve",
        "** min(step / steps, 1.0)",
        "** min(step / (steps - 1), 1.0)",
        "method/losses.py",
    ),
    Mutation("CLIP's loss is a sum", "self.settings.margin) * self.share", "self.settings.margin)", "method/clip.py"),
    Mutation(
        "CLIP reads other prompts", "batch.prompt(row) for row", "batch.prompt(row - 1) for row", "method/clip.py"
    ),
    Mutation("CLIP sees pictures unclamped", ".clamp(0, 1)  #", "  #", "method/clip.py"),
    Mutation(
        "CLIP's weight falls from the run's first step",
        "(step - self.first_vsd, self.steps)",
        "(step, self.steps)",
        "method/clip.py",
    ),
    Mutation("CLIP's mean and deviation exchanged", "MEAN, DEVIATION = (", "DEVIATION, MEAN = (", "method/clip.py"),
    # a student of several steps
    Mutation(
        "every step from noise alone",
        "x[going] = self.backbone.add_noise(x0,",
        "x[going] = self.backbone.add_noise(0 * x0,",
        "method/one_step.py",
    ),
    Mutation(
        "its last step for all samples",
        "return x, timesteps[places]",
        "return x, timesteps[places * 0 - 1]",
        "method/one_step.py",
    ),
    Mutation(
        "fresh LoRA samples of the first step alone",
        "step.draw_samples(self.one_step.start.steps)",
        "step.places = step.draw_samples(self.one_step.start.steps)",
        "method/lora_update.py",
    ),
    Mutation(
        "the steps of the teacher, not of the student",
        "picture(self.student, x[called]",
        "picture(self.backbone.network, x[called]",
        "method/one_step.py",
    ),
    # the scores apart
    Mutation(
        "the LoRA teacher's score at the frozen teacher's t",
        "self.teachers.lora, own_x, own_t,",
        "self.teachers.lora, x_t, t_rows,",
        "method/student_update.py",
    ),
    Mutation(
        "the LoRA teacher's own kappa unused",
        "of_lora if self.on in",
        "kappa if self.on in",
        "method/guidance.py",
    ),
    # NASA-T
    Mutation("alpha ~ U(0, .5)", "low + (high - low) * here", "low + (high - low) / 2 * here", "method/pgsb.py"),
    Mutation("NASA adds", "z_positive - alpha * z_negative", "z_positive + alpha * z_negative", "networks/nasa.py"),
    Mutation(
        "the student's update unsteered",
        "if step.alpha is not None:",
        "if step.alpha is not None and not __import__('torch').is_grad_enabled():",
        "method/one_step.py",
    ),
    Mutation(
        "fresh LoRA samples unsteered",
        "if step.alpha is not None:",
        "if step.alpha is not None and __import__('torch').is_grad_enabled():",
        "method/one_step.py",
    ),
    Mutation(
        "the frozen teacher keeps the null prompt",
        "text, away, kappa_teacher",
        "text, null, kappa_teacher",
        "method/student_update.py",
    ),
    Mutation(
        "the LoRA teacher gets the negative prompt",
        "text, null, kappa_lora",
        "text, away, kappa_lora",
        "method/student_update.py",
    ),
    Mutation(
        "the negative's mask dropped", "None if negative_mask is None else", "None if True else", "networks/nasa.py"
    ),
    # the LoRA teacher's updates
    Mutation(
        "LoRA's t from VSD's range",
        "draws.timesteps(self.settings.timesteps)",
        "draws.timesteps((20, 980))",
        "method/lora_update.py",
    ),
    Mutation("null dropout never", "< self.settings.null_probability", "< 0", "method/lora_update.py"),
    Mutation(
        "null dropout where there should be none",
        "step.batch.null(rows) if blind else step.batch.text(rows)",
        "step.batch.text(rows) if blind else step.batch.null(rows)",
        "method/lora_update.py",
    ),
    Mutation(
        "LoRA's weight 1", "LORA_WEIGHTS[self.settings.weight]", 'LORA_WEIGHTS["uniform"]', "method/lora_update.py"
    ),
    Mutation("LoRA's weight is alpha", "return alpha.square()", "return alpha", "method/losses.py"),
    Mutation(
        "LoRA predicts x0", "lora_loss(eps, noise_rows,", "lora_loss(eps, step.x0[rows.start],", "method/lora_update.py"
    ),
    Mutation(
        "LoRA's parts of a batch add up",
        "accelerator.backward(loss / len(parts))",
        "accelerator.backward(loss)",
        "run/update.py",
    ),
    Mutation("LoRA's scale is 1", "lora_alpha=settings.alpha", "lora_alpha=settings.rank", "networks/adapter.py"),
    Mutation(
        "fresh samples are not fresh", "if self.index and self.settings.fresh:", "if False:", "method/lora_update.py"
    ),
    Mutation("fresh samples of the same prompts", "* batches_a_step + index", "* batches_a_step", "method/pgsb.py"),
    Mutation("LoRA on other layers", '["to_q", "to_v"]', '["to_q", "to_k"]', "recipe/config.py"),
    Mutation(
        "LoRA's first weights not gaussian",
        '"gaussian" if settings.init == "gaussian" else',
        "True if True else",
        "networks/adapter.py",
    ),
    Mutation(
        "LoRA follows the student after its update",
        "if rows.start not in step.x0:",
        "if True:",
        "method/lora_update.py",
    ),
    # optimisers and average
    Mutation(
        "EMA's decay swapped", "self.means, weights, 1 - decay", "self.means, weights, decay", "networks/average.py"
    ),
    Mutation("EMA's ramp missing", "if self.ramp else", "if False else", "networks/average.py"),
    Mutation("EMA counts all steps", "average.update(step - phase.steps.start)", "average.update(step)"),
    Mutation(
        "gradients not clipped",
        "clip_grad_norm_(weights, largest_norm)",
        "clip_grad_norm_(weights, 1e9)",
        "run/update.py",
    ),
    Mutation("weight decay fixed", "weight_decay=weight_decay, fused", "weight_decay=0.01, fused", "run/machine.py"),
    Mutation(
        "the student has the LoRA's betas",
        "(config.student.learning_rate, config.student.betas)",
        "(config.student.learning_rate, config.lora.betas)",
        "method/pgsb.py",
    ),
    # the warm start
    Mutation(
        "the regression's optimiser goes on into VSD",
        "if self.phase is None or phase.averaged != self.phase.averaged:",
        "if self.phase is None:",
        "run/trained.py",
    ),
    Mutation(
        "the regression sees the first pairs alone",
        "self.order.batch(step.number * size,",
        "self.order.batch(0,",
        "method/warm_start.py",
    ),
    Mutation(
        "the student's loss of one sample counts for all",
        "return 0.5 * _mean_square(x0 - target)",
        "return 0.5 * _mean_square(x0 - target)[:1].expand(len(x0))",
        "method/losses.py",
    ),
    Mutation(
        "the regression's target is another pair's",
        "wanted[rows].to(x0.device)",
        "wanted.flip(0)[rows].to(x0.device)",
        "method/warm_start.py",
    ),
]


def apply(mutation: Mutation, root: Path) -> None:
    """Raises ValueError where the code is not what the mutation expects."""
    path = root / "training" / mutation.file
    content = path.read_text()
    if content.count(mutation.old) != 1:
        raise ValueError(f"{mutation.breaks}: {path.name} has {content.count(mutation.old)} times {mutation.old!r}")
    path.write_text(content.replace(mutation.old, mutation.new))


def outcome(mutation: Mutation | None, tests: list[str]) -> str:
    """The first test that fails and why, or "" where all pass; without a mutation, of the code as it is."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("training", "tests/training"):
            shutil.copytree(REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "weights"))
        shutil.copy(REPOSITORY / "tests/pytest.ini", root / "tests")
        if mutation:
            apply(mutation, root)
        printed = root / "printed.txt"
        if not (child := os.fork()):  # which has the libraries imported
            os.chdir(root)
            file = os.open(printed, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            options = ["-c", "tests/pytest.ini", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
            code = pytest.main([*options, *(f"tests/training/{name}" for name in tests)])
            sys.stdout.flush()
            os._exit(code)
        passed = os.waitpid(child, 0)[1] == 0
        told = printed.read_text()
    if passed:
        return ""
    test = re.search(r"^(?:FAILED|ERROR) \S*?(test_\w+\.py::.*?)(?: - |$)", told, re.MULTILINE)
    reason = re.search(r"^(?:/\S+:\d+|E  +): (.*)$", told, re.MULTILINE)
    if not test:
        raise ValueError(f"pytest could not run: {told[-1000:]}")
    return f"{test[1]}: {reason[1] if reason else ''}"[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="these alone, counted from 1")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="FILE", help=f"in tests/training; {TESTS}")
    options = parser.parse_args()
    if failed := outcome(None, options.tests):
        print(f"The tests fail without any mutation: {failed}", file=sys.stderr)
        return 1
    numbers = options.numbers or range(1, len(MUTATIONS) + 1)
    killed = 0
    for number in numbers:
        mutation = MUTATIONS[number - 1]
        found = outcome(mutation, options.tests)
        killed += bool(found)
        print(f"{number:2} {'killed  ' if found else 'SURVIVED'} {mutation.breaks:50} {found}", flush=True)
    print(f"{killed} of {len(numbers)} mutations fail a test.")
    return int(killed < len(numbers))


if __name__ == "__main__":
    sys.exit(main())
