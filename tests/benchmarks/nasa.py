"""What NASA costs over plain sampling, beside CFG: `PYTHONPATH=tests python -P -m benchmarks.nasa`.

Time, FLOPs and peak memory of a picture, on full-size networks with random weights (so the pictures mean nothing):

    plain       without a negative prompt
    nasa        with the pack's patch, from the second picture with the same negative on
    nasa first  the same, the first picture with a new negative
    cfg         CFG 4

No time is asserted: the bars are printed with met or NOT MET. On a GPU all is in fp16, and SDXL compiled comes too.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.in_process import PACK, comfyui_version, load_pack, start_comfyui

BARS = {"seconds": 1.05 if torch.cuda.is_available() else 1.03, "peak_bytes": 1.01}  # of FLOPs: the case's own
BUSY = 0.5  # a load average above it disturbs the times
HEADER = """\
| | time: NASA | first picture | CFG | FLOPs: NASA | first picture | 4 steps | CFG | memory: NASA | CFG |
|---|---|---|---|---|---|---|---|---|---|"""


def say(words: str) -> None:
    print(f"[bench {time.strftime('%H:%M:%S')}] {words}", flush=True)


def row(result: dict) -> str:
    """One line of the table: ratios to plain, of times the median of all rounds and the middle half of them."""

    def cell(what: str, variant: str) -> str:
        ratio = result.get(what, {}).get("ratio", {}).get(variant)
        if ratio is None:
            return ""
        if what == "seconds":
            return f"{ratio['median']:.3f} ({ratio['quartiles'][0]:.3f} to {ratio['quartiles'][1]:.3f})"
        return f"{ratio:.4f}"

    times = [cell("seconds", variant) for variant in ("nasa", "nasa_first", "cfg")]
    counts = [cell("flops", variant) for variant in ("nasa", "nasa_first", "cfg")]
    counts.insert(2, cell("flops_4_steps", "nasa_first"))
    memory = [cell("peak_bytes", variant) for variant in ("nasa", "cfg")]
    return "| " + " | ".join([result["title"], *times, *counts, *memory]) + " |"


def bars(results: list[dict]) -> list[dict]:
    """What the project promises of nasa over plain, and whether it is met."""
    rows = []
    for result in results:
        for what, most in (BARS | result["most"]).items():
            if what in result:
                ratio = result[what]["ratio"]["nasa"]
                ratio = ratio["median"] if what == "seconds" else ratio
                rows.append({"case": result["title"], "of": what, "most": most, "ratio": ratio, "met": ratio <= most})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NETWORK",
        help="measure these alone, by their names in networks.py and joint_networks.py",
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often the four take turns (0: no times)")
    parser.add_argument("--threads", type=int, default=2, help="of the processor")
    parser.add_argument(
        "--attention",
        choices=["torch", "default"],
        default="torch",
        help="torch's own, ComfyUI's default on a GPU and the faster on a CPU too; or what ComfyUI takes here",
    )
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="of the times; the processor's own is steadier on a machine that is busy",
    )
    parser.add_argument("--output", type=Path, default=PACK / "build" / "bench" / "nasa.json", help="the report's file")
    parser.add_argument("--narrow", action="store_true", help="tiny stand-ins: to try the benchmark itself")
    arguments = parser.parse_args()

    started = time.monotonic()
    torch.set_num_threads(arguments.threads)
    start_comfyui(arguments.attention == "torch")
    from benchmarks import cost  # imports ComfyUI

    unknown = set(arguments.only) - set(cost.NETWORKS)
    if unknown:
        parser.error(f"there is no network {', '.join(unknown)}: choose from {', '.join(cost.NETWORKS)}")

    machine = report.machine() | {"comfyui": comfyui_version()}
    load = machine["load_average"]
    if load and load[0] > BUSY:
        say(f"the machine is busy (load average {load[0]}): times will be unsteady")
    if not torch.cuda.is_available():
        say("no GPU here: fp16 on a GPU, eager and compiled, is left out")
    payload = load_pack()
    dtype = cost.fastest_dtype(say) if arguments.rounds else torch.bfloat16  # FLOPs are the same in any
    made = {
        "machine": machine,
        "settings": {"rounds": arguments.rounds, "attention": arguments.attention, "narrow": arguments.narrow}
        | {"clock": arguments.clock}
        | cost.SETTINGS,
        "cases": [],
    }
    chosen = arguments.rounds, arguments.only, arguments.narrow, arguments.clock
    for result in cost.measure_all(payload, dtype, *chosen, say):
        made["cases"].append(result)
        made["bars"] = bars(made["cases"])
        made["machine"]["load_average_after"] = report.load_average()
        report.save(made, arguments.output)

    say(f"done in {time.monotonic() - started:.0f} s; the report: {arguments.output}\n")
    if arguments.narrow:
        print("These are of tiny stand-ins and mean nothing.\n")
    print("Ratios to plain; of times the median over the rounds and the middle half of them:\n")
    print(HEADER, *(row(result) for result in made["cases"]), sep="\n")
    print()
    for bar in made["bars"]:
        met = "met    " if bar["met"] else "NOT MET"
        print(f"{met}  {bar['ratio']:.4f}  {bar['case']}: {bar['of'].replace('_', ' ')} at most {bar['most']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
