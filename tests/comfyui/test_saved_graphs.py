"""Graphs that people have: saved by older versions of the pack, and edited by hand with the widgets in another order.

`saved/` holds files as they were on a day; they are never changed. What a widget meant then is written down here.
"""

import copy
import json

import pytest

from comfyui import workflow
from comfyui.client import Refused
from comfyui.serve import PACK

SAVED = sorted((PACK / "tests" / "comfyui" / "saved").glob("*.json"))
PATCH = {"start_percent": 0.0, "end_percent": 1.0, "blocks": "all", "norm_limit": 0.0, "name": ""}
BY_RULE = {"rule": "auto", "adaptive": False, "padding": True}
SAMPLER = {"alpha": -1.0, "denoise": 1.0, "steps": 0}
DEMO = "snoopi-shapes"
#: The widgets of our nodes in each file, as they were meant.
MEANT = {
    "2026-11-23 NASA negative prompt": [
        ("NASACrossAttentionPatch", {"alpha": 1.3, **PATCH, **BY_RULE}),
        ("SNOOPIOneStepSampler", {"seed": 7, "preset": DEMO, **SAMPLER, "alpha": 1.3}),
        ("SNOOPIOneStepSampler", {"seed": 7, "preset": DEMO, **SAMPLER, "alpha": 1.3}),
    ],
    "2026-11-23 SamplerCustomAdvanced": [
        ("NASACrossAttentionPatch", {"alpha": 1.3, **PATCH, **BY_RULE}),
        ("SNOOPIModelSampling", {"preset": DEMO, "steps": 0}),
        ("SNOOPIOneStepScheduler", {"preset": "auto", "denoise": 1.0, "steps": 0}),
    ],
    "2026-11-25 Alpha sweep": [
        ("NASAAlphaSweep", {"seed": 17, "preset": DEMO, "alpha_from": 0.25, "alpha_to": 1.75, "count": 7}),
    ],
    "2026-11-25 Attention map": [
        ("NASAAttentionMap", {"word": "beard", "show": "all together", "noise": 0.7}),
        ("NASACrossAttentionPatch", {"alpha": 0.2, **PATCH, **BY_RULE}),
        ("SNOOPIOneStepSampler", {"seed": 7, "preset": "auto", **SAMPLER}),
    ],
    "2026-11-25 Auto finds the model": [
        ("SNOOPICheckpointLoader", {"model_name": "checkpoints/sd_turbo.safetensors", "preset": "auto"}),
        ("SNOOPIOneStepSampler", {"seed": 7, "preset": "auto", **SAMPLER}),
    ],
    "2026-11-25 With and without": [
        ("NASACrossAttentionPatch", {"alpha": 1.3, **PATCH, **BY_RULE}),
        ("SNOOPIOneStepSampler", {"seed": 26, "preset": DEMO, **SAMPLER}),
        ("SNOOPIOneStepSampler", {"seed": 26, "preset": DEMO, **SAMPLER}),
    ],
}
SMALL = {"EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 1}}


@pytest.fixture(scope="module")
def schemas(server):
    return server.object_info()


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_a_graph_of_an_older_version_means_what_it_meant_and_runs(server, schemas, path):
    graph = workflow.load(path, schemas)
    ours = [
        (node["class_type"], {name: value for name, value in node["inputs"].items() if not isinstance(value, list)})
        for node in graph.values() if node["class_type"].startswith(("NASA", "SNOOPI"))
    ]  # fmt: skip
    assert sorted(ours, key=str) == sorted(MEANT[path.stem], key=str)
    assert server.run(workflow.with_values(graph, **SMALL)).pictures


def swapped():
    """(file, number of the node, place of the first) for every two neighbouring widgets of our nodes.

    In files of one picture: of several, ComfyUI runs those that it finds nothing wrong with.
    """
    for path in SAVED:
        nodes = json.loads(path.read_text())["nodes"]
        for number, node in enumerate(nodes):
            values = node.get("widgets_values") or []
            if node["type"].startswith(("NASA", "SNOOPI")) and [n["type"] for n in nodes].count("SaveImage") == 1:
                for place, (one, other) in enumerate(zip(values, values[1:], strict=False)):
                    if one != other:
                        yield pytest.param(path, number, place, id=f"{node['type']}, {one!r} and {other!r}")


@pytest.mark.parametrize(("path", "number", "place"), {case.id: case for case in swapped()}.values())
def test_swapped_widgets_are_one_sentence_or_a_picture(server, schemas, path, number, place):
    graph = json.loads(path.read_text())
    values = graph["nodes"][number]["widgets_values"]
    values[place : place + 2] = values[place + 1], values[place]
    prompt = workflow.with_values(workflow.to_prompt(copy.deepcopy(graph), schemas), **SMALL)
    try:
        assert server.run(prompt).pictures
    except Refused as error:
        told = str(error)  # ComfyUI says one sentence of ours again for each input that it was asked about
        assert told.startswith("node ") and "Traceback" not in told, told
        assert all(len(sentence) <= 600 for sentence in told.split("; node ")), told
        names = [*prompt[str(graph["nodes"][number]["id"])]["inputs"], *map(str, values[place : place + 2])]
        assert any(name in told for name in names if name), told
