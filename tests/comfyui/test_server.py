"""The pack in a running server, as a user's ComfyUI sees it."""

import time

import numpy as np
import pytest

from comfyui import workflow
from comfyui.client import Interrupted, Refused
from comfyui.serve import PACK, serve

NODES = (
    "NASACrossAttentionPatch", "SNOOPIOneStepSampler", "SNOOPIModelSampling", "SNOOPIOneStepScheduler",
    "SNOOPICheckpointLoader",
)  # fmt: skip
WITH, WITHOUT = "With the negative prompt", "Without"


@pytest.fixture(scope="module")
def schemas(server):
    return server.object_info()


@pytest.fixture(scope="module")
def graph(schemas):
    return workflow.load(PACK / "workflows" / "NASA negative prompt (one step).json", schemas)


def pictures(server, graph, title, **values):
    (shown,) = server.run(workflow.only(workflow.with_values(graph, **values), title)).pictures.values()
    return shown


@pytest.mark.parametrize("node", NODES)
def test_nodes_are_there_and_explain_themselves(schemas, node):
    schema = schemas[node]
    inputs = schema["input"]["required"] | schema["input"].get("optional", {})
    assert schema["display_name"] != node and schema["description"]
    assert all(len(given) > 1 and given[1].get("tooltip") for given in inputs.values())
    assert len(schema["output_tooltips"]) == len(schema["output"]) and all(schema["output_tooltips"])


@pytest.mark.parametrize("path", sorted((PACK / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_every_workflow_runs(server, schemas, path):
    result = server.run(workflow.load(path, schemas))
    assert result.pictures and all(shown.shape == (4, 256, 256, 3) for shown in result.pictures.values())


def test_negative_changes_the_picture_and_leaves_the_model_as_it_was(server, graph):
    seeds = [{"SNOOPIOneStepSampler": {"seed": seed}} for seed in (101, 102, 101)]
    before = pictures(server, graph, WITHOUT, **seeds[0])
    steered = pictures(server, graph, WITH, **seeds[0], NASACrossAttentionPatch={"alpha": 1.0})
    pictures(server, graph, WITHOUT, **seeds[1])  # another seed, so that the third run is not answered from a cache
    after = pictures(server, graph, WITHOUT, **seeds[2])
    assert np.array_equal(before, after)
    assert not np.array_equal(before, steered)
    unsteered = pictures(server, graph, WITH, **seeds[0], NASACrossAttentionPatch={"alpha": 0.0})
    assert np.array_equal(before, unsteered)


def test_stock_nodes_without_cfg_make_the_same_pictures(server, schemas, graph):
    """The one-step sampler is what a stock sampler does from the same start."""
    stock = workflow.load(PACK / "workflows" / "CFG in one step (for comparison).json", schemas)
    expected = pictures(server, graph, WITHOUT, SNOOPIOneStepSampler={"seed": 5})
    found = pictures(server, stock, "With CFG", SamplerCustom={"noise_seed": 5, "cfg": 1.0})
    assert np.abs(expected.astype(int) - found).max() <= 1


def test_negative_of_another_width_is_one_sentence(server, graph):
    """As an SDXL negative on an SD 1.5 model."""
    negative = next(node_id for node_id, node in graph.items() if node["_meta"]["title"] == "Negative prompt")
    wide = {"class_type": "OtherWidth", "inputs": {"text": [negative, 0]}, "_meta": {"title": "Another width"}}
    bad = workflow.with_values(graph | {"wide": wide}, NASACrossAttentionPatch={"negative": ["wide", 0]})
    with pytest.raises(Refused, match=r"NASACrossAttentionPatch.*negative.*1536.*768"):
        server.run(workflow.only(bad, WITH))


def test_nan_alpha_is_refused(server, graph):
    bad = workflow.with_values(graph, NASACrossAttentionPatch={"alpha": float("nan")})
    with pytest.raises(Refused, match="alpha"):
        server.run(workflow.only(bad, WITH))


def test_unknown_preset_is_refused(server, graph):
    bad = workflow.with_values(graph, SNOOPIOneStepSampler={"preset": "no such model"})
    with pytest.raises(Refused, match="SNOOPIOneStepSampler.*no such model"):
        server.run(workflow.only(bad, WITH))


def test_interrupt_leaves_nothing_behind(server, graph):
    before = pictures(server, graph, WITHOUT, SNOOPIOneStepSampler={"seed": 31})
    long = workflow.with_values(graph, SNOOPIOneStepSampler={"seed": 32}, EmptyLatentImage={"batch_size": 4000})
    prompt_id = server.queue(workflow.only(long, WITH))
    time.sleep(0.5)
    server.interrupt()
    with pytest.raises(Interrupted):
        server.wait(prompt_id)
    after = pictures(server, graph, WITHOUT, SNOOPIOneStepSampler={"seed": 31})
    assert np.array_equal(before, after)


def test_a_pack_that_does_not_load_is_told_with_its_traceback(tmp_path, monkeypatch):
    broken = tmp_path / "pack"
    broken.mkdir()
    (broken / "__init__.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.setattr("comfyui.serve.PACK", broken)
    expected = pytest.raises(RuntimeError, match="did not load this pack(.|\n)*a_module_that_is_not_there")
    with expected, serve(tmp_path / "base"):
        pass
