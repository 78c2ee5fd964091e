"""The few-step graphs among ComfyUI's official templates, and how their settings differ from our rows.

The templates come as graphs in the package comfyui-workflow-templates-json on PyPI. A value that a switch of the graph
chooses is taken as of its few-step side: the smaller number of steps, and the smaller CFG.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "comfyui-workflow-templates-json"
LOADERS = ("UNETLoader", "CheckpointLoaderSimple", "LoraLoader", "LoraLoaderModelOnly")
MOST_STEPS = 28  # of HiDream dev; more is no few-step model
WIDGETS = {
    "KSampler": ("seed", "control", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "seed", "control", "steps", "cfg", "sampler_name", "scheduler", "start", "end"),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "Flux2Scheduler": ("steps", "width", "height"),
    "ManualSigmas": ("sigmas",),
    "KSamplerSelect": ("sampler_name",),
    "CFGGuider": ("cfg",),
    "SamplerCustom": ("add_noise", "seed", "control", "cfg"),
    "ModelSamplingSD3": ("shift",),
    "ModelSamplingAuraFlow": ("shift",),
}


@dataclass(frozen=True)
class Settings:
    """How one graph, or one subgraph in it, runs a model in a few steps.

    files: the models and LoRAs that it loads, as (name, whether it is a LoRA).
    lists: its own sigmas, if it names them, each in thousandths and without the last 0.
    shift: by a ModelSampling node; None for the model's own.
    """

    template: str
    files: tuple[tuple[str, bool], ...]
    steps: tuple[int, ...]
    lists: tuple[tuple[float, ...], ...]
    samplers: tuple[str, ...]
    shift: float | None


def download(folder: Path) -> Path:
    """The newest wheel of the package, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return max(folder.glob("*.whl"), key=lambda wheel: wheel.stat().st_mtime)


def graphs(wheel: Path) -> Iterator[tuple[str, dict]]:
    """Every template of the wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if "/templates/" in name and name.endswith(".json"):
                graph = json.loads(archive.read(name))
                if isinstance(graph, dict) and "nodes" in graph:
                    yield Path(name).stem, graph


def settings_of(template: str, graph: dict) -> Iterator[Settings]:
    """The few-step settings in a graph and in its subgraphs."""
    for part in (graph, *(graph.get("definitions") or {}).get("subgraphs", [])):
        nodes = {node["id"]: node for node in part.get("nodes", []) if node.get("mode", 0) == 0}
        links = dict(_link(link) for link in part.get("links", []))

        def values(*kinds, named, nodes=nodes, links=links):
            return [_value(node, named, nodes, links) for node in nodes.values() if node["type"] in kinds]

        files = tuple(
            (node["widgets_values"][0], "Lora" in node["type"])
            for node in nodes.values()
            if node["type"] in LOADERS and node.get("widgets_values")
        )
        lists = tuple(dict.fromkeys(
            tuple(1000 * float(sigma) for sigma in str(text).split(",") if float(sigma) > 0)
            for text in values("ManualSigmas", named="sigmas")
        ))  # fmt: skip
        steps = values("KSampler", "KSamplerAdvanced", "BasicScheduler", "Flux2Scheduler", named="steps")
        scales = values("KSampler", "KSamplerAdvanced", "CFGGuider", "SamplerCustom", named="cfg")
        if not files or not (steps or lists) or any(scale > 1 for scale in scales):
            continue
        steps = tuple(dict.fromkeys(step for step in steps if step <= MOST_STEPS))
        shifts = values("ModelSamplingSD3", "ModelSamplingAuraFlow", named="shift")
        samplers = values("KSampler", "KSamplerAdvanced", "KSamplerSelect", named="sampler_name")
        if steps or lists:
            yield Settings(template, files, steps, lists, tuple(dict.fromkeys(samplers)), min(shifts, default=None))


def _link(link: dict | list) -> tuple[int, int]:
    return (link["id"], link["origin_id"]) if isinstance(link, dict) else (link[0], link[1])


def _value(node: dict, named: str, nodes: dict, links: dict) -> float | str:
    """The value of an input: the least of those behind its link, or that of its widget."""
    for entry in node.get("inputs", []):
        if entry["name"] == named and entry.get("link") is not None and (found := _behind(entry["link"], nodes, links)):
            return min(found)
    return node["widgets_values"][WIDGETS[node["type"]].index(named)]


def _behind(link: int, nodes: dict, links: dict) -> list:
    node = nodes.get(links.get(link), {})
    if node.get("type") == "ComfySwitchNode":
        branches = [entry for entry in node["inputs"] if entry["name"] != "switch" and entry.get("link") is not None]
        return [value for entry in branches for value in _behind(entry["link"], nodes, links)]
    return node["widgets_values"][:1] if node.get("type", "").startswith("Primitive") else []


def verdict(settings: Settings, rows: list) -> str:
    """How a graph's settings differ from those of the rows of its files; empty if they do not.

    Args:
        rows: Presets whose files it loads, and those of later stages and passes of the same model.
    """
    differing = []
    for sigmas in settings.lists:
        if not any(_alike(row.timesteps, sigmas) for row in rows):
            differing.append(f"sigmas {', '.join(f'{sigma:g}' for sigma in sigmas)}")
    for steps in settings.steps:
        if not settings.lists and all(len(row.timesteps) != steps for row in rows):
            differing.append(f"{steps} steps, ours {' or '.join(str(len(row.timesteps)) for row in rows)}")
    if settings.shift is not None and not settings.lists:
        shifts = [row.shift for row in rows if isinstance(row.shift, (int, float))]
        if shifts and all(abs(shift - settings.shift) > 0.005 for shift in shifts):
            differing.append(f"shift {settings.shift:g}, ours {' or '.join(f'{shift:g}' for shift in shifts)}")
    known = [sampler for sampler in settings.samplers if sampler in {row.sampler for row in rows}]
    if settings.samplers and not known:
        differing.append(f"{', '.join(settings.samplers)}, ours {' or '.join(sorted({row.sampler for row in rows}))}")
    return "; ".join(differing)


def _alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < 0.2 for a, b in zip(one, other, strict=True))
