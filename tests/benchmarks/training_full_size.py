"""A training step at full size, random weights: `PYTHONPATH=tests python -P -m benchmarks.training_full_size`.

For each backbone: the most memory a process holds beyond its libraries, beside what --dry-run computes; samples a
second; and the share of the rate that large bf16 products reach on this device. On a GPU where there is one; on 2 cores
it takes ten minutes and 18 GB of memory. --processes splits the student over several (student.shard). The step ends
before anything is saved. Nothing is asserted.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BACKBONES = {"sd15": "stable_diffusion", "pixart": "pixart"}  # {file in training/configs: its backbone}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(BACKBONES))
    parser.add_argument("--batch", type=int, default=1, help="samples of one process, computed at once (default 1)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that is not (default 2)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--gpu-only", action="store_true", help="do nothing where there is no GPU")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build/bench/training_full_size.json")
    parser.add_argument("--child", choices=tuple(BACKBONES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    if options.child:
        child(options)
        return
    if options.gpu_only and not torch.cuda.is_available():
        print("Training at full size: no GPU here, not run (without --gpu-only: ten minutes on 2 cores).")
        return
    cases = {}
    for name in [options.only] if options.only else BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            make_teacher(name, Path(folder))
            cases[name] = measure(name, Path(folder), options)
        found = cases[name]
        print(
            f"{name}, {options.processes} x batch {options.batch}: {found['held_gib']:.1f} GiB held, "
            f"{found['computed_gib']:.1f} computed; {found['samples_per_second']:.3g} samples/s, "
            f"{found['share']:.0%} of the rate of large products"
        )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    report = {"device": device, "torch": torch.__version__, "load_average": os.getloadavg(), "cases": cases}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


def make_teacher(name: str, folder: Path) -> None:
    """A diffusers folder: the real denoiser's layout, the other parts small."""
    sys.path.insert(0, str(REPOSITORY / "tests/training"))
    import small_models

    import conftest  # noqa: F401  loads the package `training`
    from training.networks.backbones import backbone_class

    backbone = backbone_class(BACKBONES[name])
    described = next(iter(backbone.known.values()))
    if name == "sd15":
        small_models.make_teacher(folder / "teacher", context=described["cross_attention_dim"])
    else:
        from transformers import T5Config, T5EncoderModel

        small_models.make_pixart(folder / "teacher")
        size = {"vocab_size": 32, "d_model": described["caption_channels"], "d_kv": 64, "d_ff": 64, "num_heads": 4}
        T5EncoderModel(T5Config(**size, num_layers=1)).save_pretrained(folder / "teacher/text_encoder")
    backbone.network_class.from_config(described).save_pretrained(folder / "teacher" / backbone.folder)
    (folder / "prompts.txt").write_text("a red circle\na blue square\na pet\n")


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict:
    command = [sys.executable, "-P"]
    if options.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.processes}"]
    command += ["-m", "benchmarks.training_full_size", "--child", name, "--folder", str(folder)]
    for option in ("batch", "steps", "processes"):
        command += [f"--{option}", str(getattr(options, option))]
    # Freed memory goes back to the system at once, so that the process's peak is that of the tensors.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(found) < options.processes:
        sys.exit(done.stderr[-3000:])
    seconds = max(one["seconds"] for one in found)
    rate = found[0]["flops"] / seconds / options.processes
    return found[0] | {
        "seconds": seconds,
        "held_gib": max(one["peak_bytes"] for one in found) / GIB,
        "samples_per_second": options.batch * options.processes / seconds,
        "share": rate / found[0]["matmul_rate"],
    }


def child(options: argparse.Namespace) -> None:
    """The shipped config and the shipped trainer, without CLIP and average; else only teacher and batch differ."""
    sys.path.insert(0, str(REPOSITORY / "tests/training"))
    import torch

    import conftest  # noqa: F401
    from benchmarks.training_step import Clock
    from training.distill import distill
    from training.recipe import config
    from training.run.plan import plan

    settings = config.to_dict(config.load(REPOSITORY / f"training/configs/{options.child}.yaml"))
    settings |= {
        "teacher": str(options.folder / "teacher"),
        "prompts": str(options.folder / "prompts.txt"),
        "encoded_prompts": None,
        "output": str(options.folder / "run"),
        "batch_size": options.batch * options.processes,
        "micro_batch": None,
        "clip": None,
        "student": settings["student"] | {"start_from": None, "ema_decay": None, "shard": options.processes > 1},
        "samples_per_prompt": 2,
        "sample_prompts": ["a pet"],
    }
    parsed = config.parse(settings)
    planned = plan(parsed, options.processes)
    rate = matmul_rate(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    known = {
        "flops": planned.flops,
        "computed_gib": sum(planned.memory.values()) / GIB,
        "matmul_rate": rate,
    }
    distill(parsed, stop=Clock(options.steps, known))


def matmul_rate(device) -> float:
    """FLOP/s of the best of a few bf16 products of 4096 x 4096 matrices (2048 on a CPU)."""
    import torch

    size = 4096 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def seconds() -> float:
        start = time.perf_counter()
        (a @ b).sum().item()  # waits for the device
        return time.perf_counter() - start

    return 2 * size**3 / min(seconds() for _ in range(10))


if __name__ == "__main__":
    main()
