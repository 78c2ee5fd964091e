"""What `make presets-check` makes of a template: whether its settings are those of our rows."""

import json
import zipfile

import pytest

from presets.templates import graphs, settings_of, verdict


def node(number, kind, values, inputs=(), mode=0):
    return {"id": number, "type": kind, "mode": mode, "widgets_values": values, "inputs": list(inputs)}


def graph(*nodes, links=()):
    return {"nodes": list(nodes), "links": [list(link) for link in links]}


def ksampler(steps, sampler="euler", cfg=1):
    return node(9, "KSampler", [0, "fixed", steps, cfg, sampler, "simple", 1])


LIGHTNING = node(1, "LoraLoaderModelOnly", ["Qwen-Image-Lightning-4steps-V1.0.safetensors", 1])
LIST = "1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568, 0"


@pytest.mark.parametrize("nodes, row, differs", [
    ([LIGHTNING, ksampler(4)], "qwen-image-lightning-4step", ""),
    ([LIGHTNING, ksampler(6)], "qwen-image-lightning-4step", "6 steps, ours 4"),
    ([LIGHTNING, ksampler(4, "res_multistep")], "qwen-image-lightning-4step", "res_multistep, ours euler"),
    ([LIGHTNING, ksampler(4), node(2, "ModelSamplingAuraFlow", [3])], "qwen-image-lightning-4step", ""),
    ([LIGHTNING, ksampler(4), node(2, "ModelSamplingAuraFlow", [5])], "qwen-image-lightning-4step", "shift 5, ours 3"),
    ([node(1, "UNETLoader", ["qwen_image_2.1_turbo_bf16.safetensors"]), node(2, "ManualSigmas", [LIST])],
     "qwen-image-2-1-turbo", ""),
    ([node(1, "UNETLoader", ["qwen_image_2.1_turbo_bf16.safetensors"]), node(2, "ManualSigmas", ["1, 0.5, 0"])],
     "qwen-image-2-1-turbo", "sigmas 1000, 500"),
])  # fmt: skip
def test_a_difference_is_seen(sampling, nodes, row, differs):
    (settings,) = settings_of("x", graph(*nodes))
    assert verdict(settings, [sampling.presets.find_preset(row)]) == differs


def test_what_a_switch_chooses_is_taken_of_its_few_step_side():
    """As in the template image_anima_base_v1: 30 steps and CFG 4, or 8 and 1."""
    inputs = [{"name": "steps", "link": 1}, {"name": "cfg", "link": 2}]
    sampler = node(9, "KSampler", [0, "fixed", 30, 4, "euler", "simple", 1], inputs)
    parts, links = [], []
    for number, (many, few) in enumerate(((30, 8), (4, 1)), start=1):
        branches = [{"name": "on_false", "link": 10 * number}, {"name": "on_true", "link": 10 * number + 1}]
        parts += [node(100 * number, "ComfySwitchNode", [False], [*branches, {"name": "switch", "link": 99}]),
                  node(100 * number + 1, "PrimitiveInt", [many, "fixed"]),
                  node(100 * number + 2, "PrimitiveInt", [few, "fixed"])]  # fmt: skip
        links += [(number, 100 * number), (10 * number, 100 * number + 1), (10 * number + 1, 100 * number + 2)]
    loader = node(1, "LoraLoaderModelOnly", ["anima-turbo-lora-v0.2.safetensors", 1])
    whole = {"nodes": [], "definitions": {"subgraphs": [graph(loader, sampler, *parts, links=links)]}}
    (settings,) = settings_of("x", whole)
    assert settings.steps == (8,) and settings.samplers == ("euler",)


def test_graphs_of_many_steps_or_cfg_and_switched_off_nodes_do_not_count(tmp_path):
    off = node(9, "KSampler", [0, "fixed", 4, 1, "euler", "simple", 1], mode=4)
    for parts in ([LIGHTNING, ksampler(50)], [LIGHTNING, ksampler(4, cfg=4)], [LIGHTNING, off], [ksampler(4)]):
        assert not list(settings_of("x", graph(*parts)))
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/templates/a.json", json.dumps(graph(LIGHTNING, ksampler(4))))
        archive.writestr("p/templates/index.json", "[]")
    assert [name for name, _ in graphs(wheel)] == ["a"]
