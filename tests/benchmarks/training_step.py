"""The trainer's step against a plain three-network version of it: `python -P tests/benchmarks/training_step.py`.

Both train a narrow Stable Diffusion (random weights) by VSD with the same batch, precision, CFG and number of updates,
each in a process of its own, in turns. Plain is what a first script would be: three whole networks, the fake score
trained in full. Printed and saved: peak memory and steps a second of both, and the ratios. Nothing is asserted; the
bars are printed with met or NOT MET.
"""

import argparse
import copy
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BARS = {"memory": 0.6, "speed": 1.2}
KAPPA, START, RATE, LORA_RATE = 3.0, 999, 1e-6, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build/bench/training.json")
    parser.add_argument("--steps", type=int, default=6, help="timed steps a turn (default 6)")
    parser.add_argument("--turns", type=int, default=2, help="turns of each version (default 2)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=160, help="channels of the first of three levels (default 160)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--child", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--teacher", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        {"ours": ours, "plain": plain}[options.child](options)
        return

    with tempfile.TemporaryDirectory() as folder:
        weights = make_teacher(Path(folder) / "teacher", options.width)
        turns: dict[str, list[dict]] = {"plain": [], "ours": []}
        for _ in range(options.turns):
            for version, found in turns.items():
                found.append(child(version, Path(folder), options))
    figures = {
        version: {
            "peak_bytes": min(turn["peak_bytes"] for turn in found),
            "steps_per_second": 1 / min(turn["seconds"] for turn in found),
            "processor_seconds_per_step": min(turn["processor_seconds"] for turn in found),
        }
        for version, found in turns.items()
    }
    ratios = {
        "memory": figures["ours"]["peak_bytes"] / figures["plain"]["peak_bytes"],
        "speed": figures["ours"]["steps_per_second"] / figures["plain"]["steps_per_second"],
    }
    # beside others on a busy machine, the processor's own time says more than the clock
    by_processor_time = figures["plain"]["processor_seconds_per_step"] / figures["ours"]["processor_seconds_per_step"]
    met = {"memory": ratios["memory"] <= BARS["memory"], "speed": ratios["speed"] >= BARS["speed"]}
    report = {
        "weights_of_the_denoiser": weights,
        "batch": options.batch,
        "precision": options.precision,
        "load_average": os.getloadavg(),
        "machine": platform.platform(),
        **figures,
        "ratios": ratios,
        "speed_by_processor_time": by_processor_time,
        "bars": BARS,
        "met": met,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_suffix(".part")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(options.output)
    print(json.dumps(report, indent=1))
    for name, words in (("memory", "at most"), ("speed", "at least")):
        verdict = "met" if met[name] else "NOT MET"
        print(f"{name}: {ratios[name]:.2f} times the plain step, bar {words} {BARS[name]}: {verdict}")


def make_teacher(folder: Path, width: int) -> int:
    """A diffusers folder with random weights; returns how many the denoiser has."""
    sys.path.insert(0, str(REPOSITORY / "tests/training"))
    import small_models
    import torch
    from diffusers import UNet2DConditionModel

    small_models.make_teacher(folder)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    unet.save_pretrained(folder / "unet")
    (folder.parent / "prompts.txt").write_text("a red circle\na blue square\na pet\n")
    return sum(weight.numel() for weight in unet.parameters())


def child(version: str, folder: Path, options: argparse.Namespace) -> dict:
    command = [sys.executable, "-P", __file__, "--child", version, "--teacher", str(folder / "teacher")]
    for name in ("steps", "batch", "precision"):
        command += [f"--{name}", str(getattr(options, name))]
    # freed memory goes back to the system at once, so that the process's peak is that of the tensors
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


class Clock:
    """Called after every step: the first is not timed. Peak memory is what came on top of the libraries.

    Then it prints what it found, and what was `known` before.
    """

    def __init__(self, steps: int, known: dict | None = None):
        self.known = known or {}
        self.steps, self.times, self.processor_times, self.before = steps, [], [], peak()

    def __call__(self) -> bool:
        self.times.append(time.perf_counter())
        self.processor_times.append(time.process_time())
        if len(self.times) <= self.steps:
            return False
        seconds, processor_seconds = (
            statistics.median(b - a for a, b in zip(times, times[1:], strict=False))
            for times in (self.times, self.processor_times)
        )
        figures = {"seconds": seconds, "processor_seconds": processor_seconds, "peak_bytes": peak() - self.before}
        print(json.dumps(self.known | figures), flush=True)
        os._exit(0)  # before anything is saved


def peak() -> int:
    """Peak memory in bytes: of the GPU where there is one, else of the process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss begins with what the process that started this one held
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def ours(options: argparse.Namespace) -> None:
    """The shipped trainer, whole."""
    sys.path.insert(0, str(REPOSITORY / "tests/training"))
    import conftest  # noqa: F401  loads the package `training`
    from training.distill import distill
    from training.recipe.config import parse

    folder = options.teacher.parent
    settings = {
        "teacher": str(options.teacher),
        "prompts": str(folder / "prompts.txt"),
        "output": str(folder / f"run-{os.getpid()}"),
        "batch_size": options.batch,
        "mixed_precision": options.precision,
        "kappa": [KAPPA, KAPPA],
        "start": {"timestep": START, "noise": "unit"},
        "student": {"learning_rate": RATE, "ema_decay": None},
        "lora": {"learning_rate": LORA_RATE, "rank": 64},
        "sample_prompts": ["red"],
        "samples_per_prompt": 2,
    }
    distill(parse(settings), stop=Clock(options.steps))


def plain(options: argparse.Namespace) -> None:
    """Three networks: frozen teacher, fake score, student, each whole, fp32 under autocast; AdamW on the last two."""
    sys.path.insert(0, str(REPOSITORY / "tests/training"))
    import torch
    from torch.nn.functional import mse_loss

    import conftest  # noqa: F401
    from training.networks.backbones import load_backbone

    clock = Clock(options.steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_flush_denormal(True)
    backbone = load_backbone("stable_diffusion", str(options.teacher), device)
    teacher = backbone.network
    fake, student = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(2))
    fake_optimizer = torch.optim.AdamW(fake.parameters(), lr=LORA_RATE)
    student_optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    text = backbone.encode(["a red circle"] * options.batch).embeddings
    null = backbone.encode([""] * options.batch).embeddings
    alphas, sigmas = backbone.alphas, backbone.sigmas
    autocast = torch.autocast(device, torch.bfloat16, enabled=options.precision == "bf16")

    def predict(network, x_t, t, words):
        with autocast:
            return network(x_t, t, encoder_hidden_states=words, return_dict=False)[0].float()

    def guided(network, x_t, t):
        eps_text, eps_null = predict(network, x_t.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([text, null])).chunk(2)
        return eps_null + KAPPA * (eps_text - eps_null)

    def noised(x0, t):
        alpha, sigma, noise = alphas[t].view(-1, 1, 1, 1), sigmas[t].view(-1, 1, 1, 1), torch.randn_like(x0)
        return alpha * x0 + sigma * noise, noise, alpha, sigma

    while True:
        start = torch.full((options.batch,), START, device=device)
        z = torch.randn(options.batch, *backbone.latent_shape(), device=device)
        x0 = (z - sigmas[START] * predict(student, z, start, text)) / alphas[START]
        t = torch.randint(20, 981, (options.batch,), device=device)
        with torch.no_grad():
            x_t, _, _, sigma = noised(x0, t)
            target = x0 - sigma**2 * (guided(teacher, x_t, t) - guided(fake, x_t, t))
        (0.5 * mse_loss(x0, target)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        student_optimizer.step()
        student_optimizer.zero_grad()

        t = torch.randint(0, 1000, (options.batch,), device=device)
        x_t, noise, alpha, _ = noised(x0.detach(), t)
        (alpha**2 * (predict(fake, x_t, t, text) - noise) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(fake.parameters(), 1.0)
        fake_optimizer.step()
        fake_optimizer.zero_grad()
        clock()


if __name__ == "__main__":
    main()
