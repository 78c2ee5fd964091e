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
        "vsd_loss's arguments exchanged", "vsd_loss(x0, eps_teacher, eps_lora,", "vsd_loss(x0, eps_lora, eps_teacher,"
    ),
    Mutation("another kappa for the LoRA teacher", "kappa_lora = kappa if", "kappa_lora = kappa / 2 + 1 if"),
    Mutation(
        "kappa not from its range",
        "low + (high - low) * torch.rand((count",
        "low + high * torch.rand((count",
        "method/guidance.py",
    ),
    Mutation(
        "one sample's kappa for another", "random_kappa[rows if scales > 1", "random_kappa.flip(0)[rows if scales > 1"
    ),
    Mutation(
        "CFG counts kappa from the text",
        "eps_null + kappa * (eps_text",
        "eps_text + kappa * (eps_text",
        "method/guidance.py",
    ),
    Mutation(
        "cfg_on: teacher read as lora", 'config.cfg_on in ("both", "teacher")', 'config.cfg_on in ("both", "lora")'
    ),
    Mutation("LoRA on in the frozen teacher", "guided(teachers.frozen,", "guided(teachers.lora,"),
    Mutation("LoRA off in the LoRA teacher", "guided(teachers.lora,", "guided(teachers.frozen,"),
    Mutation(
        "VSD's t from LoRA's range", "draw_timesteps(config.vsd.timesteps)", "draw_timesteps(config.lora.timesteps)"
    ),
    Mutation(
        "VSD's noise is the student's own",
        "noise[rows].to(device), t_rows)\n                        eps_teacher",
        "z[rows].to(device), t_rows)\n                        eps_teacher",
    ),
    Mutation("VSD's weight fixed", "VSD_WEIGHTS[config.vsd.weight]", 'VSD_WEIGHTS["sigma_squared"]'),
    Mutation("VSD's weight is sigma", "return sigma.square()", "return sigma", "method/losses.py"),
    Mutation("VSD's gradient twice", "0.5 * torch.nn", "torch.nn", "method/losses.py"),
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
        "networks/backbones/latent_diffusion.py",
    ),
    Mutation(
        "vp noise read as unit",
        'z.float() if noise == "unit" else sigma * z.float()',
        "z.float()",
        "networks/backbones/latent_diffusion.py",
    ),
    # CLIP
    Mutation(
        "CLIP's weight never falls",
        "falling_weight(config.clip.weight, config.clip.final_weight, *progress)",
        "config.clip.weight",
    ),
    Mutation(
        "CLIP's weight falls by another curve",
        "** min(step / steps, 1.0)",
        "** min(step / (steps - 1), 1.0)",
        "method/losses.py",
    ),
    Mutation("CLIP's loss is a sum", "config.clip.margin) * share / len(x0)", "config.clip.margin)"),
    Mutation("CLIP reads other prompts", "prompts[chosen[row]] for row", "prompts[chosen[row - 1]] for row"),
    Mutation("CLIP sees pictures unclamped", ".clamp(0, 1)  #", "  #", "method/clip.py"),
    Mutation(
        "CLIP's weight falls from the run's first step", "(step - first_vsd, config.steps)", "(step, config.steps)"
    ),
    Mutation("CLIP's mean and deviation exchanged", "MEAN, DEVIATION = (", "DEVIATION, MEAN = (", "method/clip.py"),
    # NASA-T
    Mutation("alpha ~ U(0, .5)", "low + (high - low) * torch.rand(()", "low + (high - low) / 2 * torch.rand(()"),
    Mutation("NASA adds", "z_positive - alpha * z_negative", "z_positive + alpha * z_negative", "networks/nasa.py"),
    Mutation(
        "the student's update unsteered",
        "student_x0(trained_student, z[rows], text, *steer)",
        "student_x0(trained_student, z[rows], text)",
    ),
    Mutation(
        "fresh LoRA samples unsteered",
        "student_x0(student, z[rows], text, *steer)",
        "student_x0(student, z[rows], text)",
    ),
    Mutation("the frozen teacher keeps the null prompt", "text, unwanted, kappa_teacher", "text, null, kappa_teacher"),
    Mutation("the LoRA teacher gets the negative prompt", "text, null, kappa_lora", "text, unwanted, kappa_lora"),
    Mutation(
        "the negative's mask dropped", "None if negative_mask is None else", "None if True else", "networks/nasa.py"
    ),
    # the LoRA teacher's updates
    Mutation(
        "LoRA's t from VSD's range", "draw_timesteps(config.lora.timesteps)", "draw_timesteps(config.vsd.timesteps)"
    ),
    Mutation("null dropout never", "< config.lora.null_probability", "< 0"),
    Mutation("null dropout where there should be none", "nulls if blind else texts", "texts if blind else nulls"),
    Mutation("LoRA's weight 1", "LORA_WEIGHTS[config.lora.weight]", 'LORA_WEIGHTS["uniform"]'),
    Mutation("LoRA's weight is alpha", "return alpha.square()", "return alpha", "method/losses.py"),
    Mutation("LoRA predicts x0", "lora_loss(eps, noise_rows,", "lora_loss(eps, x0,"),
    Mutation(
        "LoRA's parts of a batch add up",
        "= lora_loss(eps, noise_rows, weight)",
        "= lora_loss(eps, noise_rows, weight) * len(parts)",
    ),
    Mutation("LoRA's scale is 1", "lora_alpha=settings.alpha", "lora_alpha=settings.rank", "networks/adapter.py"),
    Mutation("fresh samples are not fresh", "if index and config.lora.fresh:", "if False:"),
    Mutation("fresh samples of the same prompts", "* batches_a_step + number)", "* batches_a_step)"),
    Mutation("LoRA on other layers", '["to_q", "to_v"]', '["to_q", "to_k"]', "recipe/config.py"),
    Mutation(
        "LoRA's first weights not gaussian",
        '"gaussian" if settings.init == "gaussian" else',
        "True if True else",
        "networks/adapter.py",
    ),
    Mutation("LoRA follows the student after its update", "if not samples:", "if True:"),
    # optimisers and average
    Mutation(
        "EMA's decay swapped", "self.means, weights, 1 - decay", "self.means, weights, decay", "networks/average.py"
    ),
    Mutation("EMA's ramp missing", "if self.ramp else", "if False else", "networks/average.py"),
    Mutation("EMA counts all steps", "average.update(step - first_vsd)", "average.update(step)"),
    Mutation(
        "gradients not clipped", "clip_grad_norm_(weights, config.gradient_clip)", "clip_grad_norm_(weights, 1e9)"
    ),
    Mutation("weight decay fixed", "weight_decay=weight_decay, fused", "weight_decay=0.01, fused", "run/machine.py"),
    Mutation(
        "the student has the LoRA's betas", "student_weights, rate, betas,", "student_weights, rate, config.lora.betas,"
    ),
    # the warm start
    Mutation(
        "the regression's optimiser goes on into VSD",
        "                student_optimizer = student_optimizer_for(step)\n",
        "                pass\n",
    ),
    Mutation(
        "the regression sees the first pairs alone", "pair_order.batch(step * config.batch_size,", "pair_order.batch(0,"
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
