"""`make demo`: negative prompts on the demo model, on a real ComfyUI, over HTTP, with the graphs of workflows/.

Leaves without_vs_with.png, alpha_sweep.png, attention_map.png and report.json in build/demo; each picture holds a graph
of workflows/, which opens where it is dropped on ComfyUI. A batch takes all its noise from one seed, so "100 seeds" are
100 different noises from two seeds; every method gets the same ones.
"""

import argparse
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from comfyui.client import Refused, Unreachable
from comfyui.serve import PACK, prepare, serve
from demo import figures, report
from demo.graphs import CFG_SCALE, MAP_WORKFLOW, NASA_WORKFLOW, SWEEP_WORKFLOW
from demo.measure import FIRST_SEED, SWEEP, Demo
from training.shapes.detector import accuracy_on_drawn
from training.shapes.measurement import PAIRS

CHECKPOINT = "snoopi-shapes.safetensors"
RECORD = PACK / "training" / "shapes" / "weights" / "record.json"
EMBEDDING_SUBTRACTION = Path(__file__).with_name("embedding_subtraction")
SWEPT = [PAIRS[number] for number in (0, 1, 2, 4, 5, 6)]


class DemoError(Exception):
    """What stops the demo, in one sentence with the remedy."""


def say(text: str) -> None:
    print(f"[demo {time.strftime('%H:%M:%S')}] {text}", flush=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other demos out of ``folder``: two servers would give their pictures the same names. Raises DemoError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"Another demo is running in {folder}; wait until it ends or give another --output."
            ) from None
        yield


def make_checkpoint(path: Path) -> None:
    """Put the demo model's checkpoint together from the committed weights, or keep it. Raises DemoError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    of_record = path.with_suffix(".record.json")  # of the weights that the checkpoint was put together from
    if path.is_file() and not path.is_symlink() and of_record.exists() and of_record.read_text() == RECORD.read_text():
        return
    say("putting the demo model's checkpoint together")
    command = [sys.executable, "-m", "training.shapes", "checkpoint", str(path)]
    made = subprocess.run(command, cwd=PACK, capture_output=True, check=False, text=True)
    if made.returncode:
        raise DemoError((made.stderr.strip().splitlines() or ["the checkpoint was not made"])[-1])
    of_record.write_text(RECORD.read_text())


def use_checkpoint(given: Path, path: Path) -> None:
    """Let the server load the file ``given``. Raises DemoError if it is missing or cut short."""
    try:
        with safe_open(given, "numpy") as file:
            file.keys()
    except (OSError, SafetensorError) as error:
        remedy = f"`python -m training.shapes checkpoint {given}` makes it again"
        raise DemoError(
            f"The checkpoint {given} is missing, cut short or no safetensors file ({error}); {remedy}."
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(given.resolve())


def read_record() -> dict:
    try:
        return json.loads(RECORD.read_text())
    except (OSError, ValueError) as error:
        raise DemoError(
            f"Cannot read {RECORD} ({error}); check out the repository anew or run `make demo-model`."
        ) from None


def measure(demo: Demo, record: dict, seeds: int, pictures: int, output: Path) -> dict:
    """Make and count all pictures, draw the two figures into ``output``; the report."""
    version = demo.client.system_stats()["system"]["comfyui_version"]
    say(f"ComfyUI {version} is up; {len(PAIRS)} prompts with a negative, {seeds} seeds, four ways to use it")
    rows, shown = [], []
    for pair in tqdm(PAIRS, "prompt pairs", ncols=90):
        row, images = demo.pair(pair, seeds)
        rows.append(row)
        shown.append(images)
    figures.save(figures.without_vs_with(rows, shown, demo.alpha), output / "without_vs_with.png", NASA_WORKFLOW)
    figures.save(figures.alpha_sweep(SWEPT, demo.sweep(SWEPT, 4), SWEEP), output / "alpha_sweep.png", SWEEP_WORKFLOW)
    mapped = figures.attention_map(PAIRS[:4], demo.maps(PAIRS[:4], 3))
    figures.save(mapped, output / "attention_map.png", MAP_WORKFLOW)
    say("how well the model follows its prompts, and what one picture costs")
    accuracy, colors = demo.student(pictures)
    plain, nasa = demo.seconds()
    return {
        "comfyui_version": version,
        "alpha": demo.alpha,
        "detector_accuracy": accuracy_on_drawn(),
        "teacher_accuracy": record["teacher_accuracy"],
        "student_accuracy": accuracy,
        "student_colors": colors,
        "pairs": rows,
        "seconds_plain": plain,
        "seconds_nasa": nasa,
        "settings": {
            "first_seed": FIRST_SEED,
            "cfg_scale": CFG_SCALE,
            "embedding_strength": demo.alpha,
            "weights": record["sha256"],
        },
        **report.machine(),
    }


def run(output: Path, seeds: int, pictures: int, checkpoint: Path | None = None, alpha: float | None = None) -> dict:
    """The whole demo; writes its three files into ``output`` and gives the report. Raises DemoError."""
    record = read_record()
    base = output / "comfyui"
    shutil.rmtree(base / "output", ignore_errors=True)  # pictures of an earlier run
    prepare(base)
    inside = base / "models" / "checkpoints" / CHECKPOINT
    if checkpoint:
        use_checkpoint(checkpoint, inside)
    else:
        make_checkpoint(inside)
    say("starting a ComfyUI server on the CPU")
    with serve(base, (EMBEDDING_SUBTRACTION,), {"--cache-lru": ["100"]}) as client:
        made = measure(Demo(client, record["alpha"] if alpha is None else alpha), record, seeds, pictures, output)
    report.save(made, output / "report.json")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PACK / "build" / "demo", help="folder for the results")
    parser.add_argument(
        "--checkpoint", type=Path, help="a checkpoint of the demo model to use instead of the committed"
    )
    parser.add_argument("--seeds", type=int, default=100, help="pictures for each pair and method")
    parser.add_argument("--pictures", type=int, default=500, help="pictures for the student's accuracy")
    parser.add_argument("--alpha", type=float, help="strength of the negative prompts (default: the model's own)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended too
    started = time.monotonic()
    try:
        with alone_in(arguments.output):
            made = run(**vars(arguments))
    except (DemoError, Refused, Unreachable, RuntimeError) as error:
        print(f"The demo stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"done in {time.monotonic() - started:.0f} s\n")
    print(report.table(made))
    print(f"\nThe picture: {arguments.output / 'without_vs_with.png'}")
    print("Also there: alpha_sweep.png, attention_map.png, report.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
