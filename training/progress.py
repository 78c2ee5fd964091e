"""What people watch: figures beside the bar, metrics.jsonl, and Ctrl-C that saves first."""

import json
import signal
import sys
from pathlib import Path

import numpy

from .atomic import atomic_file


def summary(figures: dict[str, float]) -> str:
    """The few figures that fit beside the progress bar."""
    shown = {
        "score_gap": "gap", "regression_loss": "regression", "lora_loss": "lora", "x0_std": "x0 std",
        "diversity": "diversity", "student_grad_norm": "|g|", "lora_grad_norm": "|g lora|",
    }  # fmt: skip
    return ", ".join(f"{label} {figures[key]:.3g}" for key, label in shown.items() if key in figures)


class Metrics:
    """metrics.jsonl, a line a logged step; lines after `first` (from before a crash) are dropped."""

    def __init__(self, path: Path, first: int):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(line for line in whole if json.loads(line)["step"] <= first))
        self.file = path.open("a")

    def write(self, figures: dict) -> None:
        finite = {
            key: None if isinstance(value, float) and not numpy.isfinite(value) else value
            for key, value in figures.items()
        }
        self.file.write(json.dumps(finite) + "\n")
        self.file.flush()


class StopSignal:
    """Ctrl-C or SIGTERM: the step in hand is finished and saved. A second Ctrl-C stops at once."""

    def __init__(self):
        self.asked = False
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, self._ask)

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, kind: int, frame: object) -> None:
        self.asked = True
        print("\nFinishing this step and saving; once more to stop at once.", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)
