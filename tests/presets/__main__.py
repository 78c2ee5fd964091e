"""The table of presets with the errors measured here: `python -m presets` with tests/ on the path.

It runs tests/nodes/sampling/test_presets.py, which writes build/presets.json, and prints a Markdown table from that
file and from presets.yaml. Every error is the largest deviation from the authors' own formula, in units of the latent's
largest value, on narrow models with random weights: it shows wrong input, timesteps or formula, not quality.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml

PACK = Path(__file__).parents[2]
SAMPLING = PACK / "nodes" / "sampling"
RESULTS = PACK / "build" / "presets.json"
COLUMNS = ["preset", "model", "prediction", "timesteps", "noise", "steps by", "px", "ours", "patched KSampler",
           "stock KSampler"]  # fmt: skip


def main() -> int:
    test = PACK / "tests" / "nodes" / "sampling" / "test_presets.py"
    command = [sys.executable, "-P", "-m", "pytest", "-c", str(PACK / "tests" / "pytest.ini"), "-q", str(test)]
    ran = subprocess.run(command, cwd=PACK, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode:
        print(ran.stdout)
        return ran.returncode
    rows = yaml.safe_load((SAMPLING / "presets.yaml").read_text(encoding="utf-8"))
    print(table(rows, json.loads(RESULTS.read_text(encoding="utf-8"))))
    print("\nErrors in units of the latent's largest value; narrow models, random weights, fp32.")
    print("-: rows of two stages, second passes and sound have tests of their own, or this ComfyUI lacks the family.\n")
    for name, reason in yaml.safe_load((SAMPLING / "not_runnable.yaml").read_text(encoding="utf-8")).items():
        print(f"- {name}: {reason}")
    return 0


def table(rows: dict[str, dict], measured: list[dict]) -> str:
    """A Markdown table, a row a preset, each error the worst over the backbones it fits."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for name, row in rows.items():
        errors = [entry for entry in measured if entry["preset"] == name]
        kinds = ("sampler", "ksampler", "stock")
        worst = {kind: max((entry[kind] for entry in errors), default=None) for kind in kinds}
        timesteps = ", ".join(f"{timestep:g}" for timestep in row["timesteps"])
        steps_by = "fresh noise" if row.get("renoise") == "fresh" else row.get("solver", "euler").replace("_", " ")
        lines.append(
            " | ".join(
                [f"`{name}`", row["model"], row["prediction"], timesteps, row.get("noise", "unit"), steps_by,
                 str(row.get("resolution", "")), shown(worst["sampler"]), shown(worst["ksampler"]),
                 shown(worst["stock"])]
            )
        )  # fmt: skip
    return "\n".join(f"| {line} |" for line in lines)


def shown(error: float | None) -> str:
    """An error as a reader wants it: tiny ones by their power of ten, others in percent; None is one not measured."""
    if error is None:
        return "-"
    return f"{error:.0e}" if error < 1e-4 else f"{100 * error:.3g} %"


if __name__ == "__main__":
    sys.exit(main())
