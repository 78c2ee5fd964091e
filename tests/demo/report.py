"""The demo's report: its file, its table and whether the project's bars are met."""

import importlib.metadata
import json
import platform
import statistics
from pathlib import Path

from demo.graphs import METHODS

PACKAGES = ("torch", "numpy", "pillow", "safetensors")
COLUMNS = {"none": "nothing", "cfg": "CFG", "embedding": "embedding", "nasa": "NASA"}


def machine() -> dict:
    """The processor, its cores and the versions that the figures were taken with."""
    names = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {
        "machine": f"{names[0] if names else platform.machine()}, {len(names) or 1} cores, {platform.platform()}",
        "versions": {"python": platform.python_version(), **versions},
    }


def cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def mean(report: dict, method: str, what: str) -> float:
    return statistics.mean(pair[method][what] for pair in report["pairs"])


def bars(report: dict) -> list[tuple[str, float, bool]]:
    """What the project promises, the figure, and whether it is met."""
    colors = report["student_colors"].values()
    worse = sum(pair["nasa"]["absent"] < pair["none"]["absent"] for pair in report["pairs"])
    figures = [
        ("detector right on drawn pictures: at least 99%", report["detector_accuracy"], 0.99, 1),
        ("teacher follows colour and shape: at least 95%", report["teacher_accuracy"], 0.95, 1),
        ("one-step student does: at least 90%", report["student_accuracy"], 0.90, 1),
        ("no colour takes more than 60%", max(colors), 0, 0.60),
        ("every colour has at least 5%", min(colors), 0.05, 1),
        ("without a negative absent: at most 80%", mean(report, "none", "absent"), 0, 0.80),
        ("with NASA absent: at least 95%", mean(report, "nasa", "absent"), 0.95, 1),
        ("with NASA the prompt is kept: at least 90%", mean(report, "nasa", "kept"), 0.90, 1),
        ("share of pairs where NASA does worse than nothing: 0%", worse / len(report["pairs"]), 0, 0),
    ]
    return [(name, figure, low <= figure <= high) for name, figure, low, high in figures]


def table(report: dict) -> str:
    """Per pair how often the unwanted thing is absent / the prompt kept, for each method; then the bars."""
    lines = ["Unwanted thing absent / what the prompt asked for kept:", ""]
    heads = "".join(f"{COLUMNS[method]:>15}" for method in METHODS)
    lines.append(f"{'prompt':<20} {'negative':<10}{heads}")
    rows = [(pair["prompt"], pair["negative"], pair) for pair in report["pairs"]]
    means = {
        method: {"absent": mean(report, method, "absent"), "kept": mean(report, method, "kept")} for method in METHODS
    }
    for prompt, negative, shares in [*rows, ("mean", "", means)]:
        cells = [f"{shares[method]['absent']:.0%} / {shares[method]['kept']:.0%}" for method in METHODS]
        lines.append(f"{prompt:<20} {negative:<10}" + "".join(f"{cell:>15}" for cell in cells))
    plain, nasa = report["seconds_plain"], report["seconds_nasa"]
    lines += ["", *(f"{'met    ' if met else 'NOT MET'}  {figure:6.1%}  {name}" for name, figure, met in bars(report))]
    lines += [
        "",
        f"One picture: {plain * 1000:.0f} ms without, {nasa * 1000:.0f} ms with NASA (whole run on the server)",
    ]
    return "\n".join(lines)


def save(report: dict, path: Path) -> None:
    """Write the report whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)
