"""The table of presets with the errors measured here: `python -m presets` with tests/ on the path.

It runs tests/nodes/sampling/test_presets.py, which writes build/presets.json, prints a Markdown table from that file
and from presets.yaml, and writes the tables by family in docs/presets.md. Every error is the largest deviation from
the authors' own formula, in units of the latent's largest value, on narrow models with random weights: it shows wrong
input, timesteps or formula, not quality.
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
PAGE = PACK / "docs" / "presets.md"
BEGIN, END = "<!-- written by make presets -->\n", "<!-- end -->\n"
FAMILIES = {  # every backbone of nodes/sampling/backbones.py, as people call it
    "SDXL": "SDXL, Pony, Illustrious, NoobAI",
    "SD 1.x": "Stable Diffusion 1.5",
    "SD 2.x": "Stable Diffusion 2.1",
    "PixArt": "PixArt",
    "SD 3.x": "Stable Diffusion 3 and 3.5",
    "FLUX.1": "FLUX.1",
    "FLUX.2": "FLUX.2",
    "Z-Image": "Z-Image",
    "Qwen-Image": "Qwen-Image and Qwen-Image Edit",
    "Krea 2": "Krea 2",
    "Anima": "Anima",
    "Wan": "Wan 2.1 and 2.2 (video)",
    "LTX": "LTX-2, 2.3 and 2.5 (video)",
    "MiniMax H3": "MiniMax H3 (video)",
    "HiDream": "HiDream",
    "Ernie-Image": "Ernie-Image",
    "Boogu": "Boogu",
    "Mage-Flow": "Mage-Flow",
    "Lens": "Lens",
}
#: What an error of a KSampler is called, up to which size; above the last it is wrong.
WORDS = ((0.001, "the same"), (0.05, "a little off"), (0.5, "off"))


def main() -> int:
    test = PACK / "tests" / "nodes" / "sampling" / "test_presets.py"
    command = [sys.executable, "-P", "-m", "pytest", "-c", str(PACK / "tests" / "pytest.ini"), "-q", str(test)]
    command += ["-k", "not page"]  # which is written below
    ran = subprocess.run(command, cwd=PACK, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode:
        print(ran.stdout)
        return ran.returncode
    rows = yaml.safe_load((SAMPLING / "presets.yaml").read_text(encoding="utf-8"))
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(table(rows, measured))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + by_family(rows, measured) + END + rest.partition(END)[2], encoding="utf-8")
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


def by_family(rows: dict[str, dict], measured: list[dict]) -> str:
    """Markdown tables in words, one a family; a row that fits several families is in the table of each."""
    errors = {(entry["preset"], entry["backbone"]): entry["stock"] for entry in measured}
    lines = []
    for family, called in FAMILIES.items():
        lines += [f"\n### {called}\n", "| preset | for | steps | size | CFG | a plain KSampler |", f"|{6 * '---|'}"]
        for name, row in rows.items():
            if family in row["backbones"]:
                size = f"{row['resolution']} px" if "resolution" in row else "any"
                cells = (f"`{name}`", row["model"], in_words(row), size, f"{row.get('cfg', 1):g}",
                         called_error(errors.get((name, family))))  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "\n"])


def in_words(row: dict) -> str:
    """How many steps, or which of them for one of two models that take turns."""
    count = len(row["timesteps"])
    if "stage" not in row:
        return str(count)
    first, end = row["stage"]
    return f"{first + 1} to {end} of {count}"


def called_error(error: float | None) -> str:
    if error is None:
        return "-"
    return next((word for largest, word in WORDS if error < largest), "wrong")


def shown(error: float | None) -> str:
    """An error as a reader wants it: tiny ones by their power of ten, others in percent; None is one not measured."""
    if error is None:
        return "-"
    return f"{error:.0e}" if error < 1e-4 else f"{100 * error:.3g} %"


if __name__ == "__main__":
    sys.exit(main())
