"""What people watch: figures beside the bar, metrics.jsonl, any tracker, and Ctrl-C that saves first."""

import json
import re
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import UserError, quoted
from ..files import atomic_file

WANDB = "wandb_id"  # the file in the run folder


def summary(figures: dict[str, float]) -> str:
    """The few figures that fit beside the progress bar."""
    shown = {
        "score_gap": "gap", "regression_loss": "regression", "lora_loss": "lora", "x0_std": "x0 std",
        "diversity": "diversity", "student_grad_norm": "|g|", "lora_grad_norm": "|g lora|",
    }  # fmt: skip
    return ", ".join(f"{label} {figures[key]:.3g}" for key, label in shown.items() if key in figures)


class Metrics:
    """What the first process writes down: RUN/metrics.jsonl, a line a logged step, and the tracker if there is one.

    Lines after `first` (from before a crash) are dropped. settings: by name, for the tracker.
    """

    def __init__(self, run: Path, first: int, accelerator: Accelerator, tracker: str | None, settings: dict[str, Any]):
        self.accelerator, self.file = accelerator, None
        if tracker:
            kept = (int, float, str)
            plain = {key: value if isinstance(value, kept) else str(value) for key, value in settings.items()}
            resumed = {tracker: _resumed(run, tracker)} if accelerator.is_main_process else {}
            try:
                accelerator.init_trackers("snoopi", config=plain, init_kwargs=resumed)
            except ImportError as error:
                raise UserError(f"tracker is {tracker}, not wholly installed here ({quoted(error)}).") from None
            except Exception as error:  # no account, no network, whatever else such a service may lack
                raise UserError(
                    f"tracker is {tracker}, which does not start ({quoted(error)}); put that right, or write "
                    f"`tracker: null`."
                ) from None
        if not accelerator.is_main_process:
            return
        path = run / "metrics.jsonl"
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise UserError(f"Cannot read {quoted(path)} ({quoted(error.strerror)}); move it away.") from None
        steps = [_step_of(line) for line in lines]
        if broken := [number for number, step in enumerate(steps, 1) if step is None and number < len(lines)]:
            print(f"{quoted(path)}: {len(broken)} broken lines, as line {broken[0]}, are left out.", file=sys.stderr)
        kept = (line for line, step in zip(lines, steps, strict=True) if step is not None and step <= first)
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"".join(kept))
        self.file = path.open("a", encoding="utf-8")

    def write(self, step: int, phase: str, figures: dict[str, float]) -> None:
        self.accelerator.log(figures, step=step)
        if self.file is None:
            return
        finite = {key: value if numpy.isfinite(value) else None for key, value in figures.items()}
        self.file.write(json.dumps({"step": step, "phase": phase} | finite) + "\n")
        self.file.flush()

    def pictures(self, grid: numpy.ndarray, step: int) -> None:
        """The sample grid, uint8 [height, width, 3], to a tracker that takes pictures. First process only."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                shape = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": grid[None]}, step=step, **shape)

    def close(self) -> None:
        """All processes leave together; accelerate's own ending destroys their group, in which one of them may hang."""
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _resumed(run: Path, tracker: str) -> dict[str, Any]:
    """What makes a service go on with its own record of this run instead of beginning another: wandb by an id that is
    kept in the run folder. tensorboard goes on by its folder alone."""
    if tracker != "wandb":
        return {}
    path = run / WANDB
    try:
        known = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        known = ""
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", known):
        known = secrets.token_hex(4)  # as long as wandb's own
        with atomic_file(path) as temporary:
            temporary.write_text(known + "\n", encoding="utf-8")
    return {"id": known, "resume": "allow"}


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None for a line that is cut short or no such line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int and line.endswith(b"\n") else None


class ScoreGaps:
    """How far the two scores are apart, eps RMS, over all and by four equal ranges of t, since the last reading."""

    RANGES = 4

    def __init__(self, timesteps: int, device: torch.device):
        self.timesteps = timesteps
        self.sums = torch.zeros(2, self.RANGES, device=device)  # of squares, and how many

    def add(self, t: Tensor, difference: Tensor) -> None:
        """t [n]; difference [n, c, h, w] = eps_teacher - eps_lora. Does not wait for the device."""
        squares = difference.square().flatten(1).mean(1)
        self.sums.index_add_(1, t * self.RANGES // self.timesteps, torch.stack([squares, torch.ones_like(squares)]))

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """score_gap and score_gap/FIRST-LAST for every range seen, of all processes; then starts again."""
        squares, counts = accelerator.reduce(self.sums, "sum").tolist()
        self.sums.zero_()
        if not any(counts):
            return {}
        found = {"score_gap": (sum(squares) / sum(counts)) ** 0.5}
        width = self.timesteps // self.RANGES
        for index, (square, count) in enumerate(zip(squares, counts, strict=True)):
            if count:
                found[f"score_gap/{index * width}-{(index + 1) * width - 1}"] = (square / count) ** 0.5
        return found


class StopSignal:
    """Ctrl-C or SIGTERM: the step or shard in hand is finished and saved. A second Ctrl-C stops at once."""

    def __init__(self):
        self.asked = False
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, self._ask)

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, kind: int, frame: object) -> None:
        self.asked = True
        print("\nStopping as soon as what is in hand is saved; once more to stop at once.", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)
