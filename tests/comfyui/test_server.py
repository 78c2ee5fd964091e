"""The pack in a running server, as a user's ComfyUI sees it."""

import json
import re
import time
from contextlib import suppress

import numpy as np
import pytest
import yaml

from comfyui import workflow
from comfyui.client import Interrupted, Refused
from comfyui.serve import PACK, serve

NODES = (
    "NASACrossAttentionPatch", "SNOOPIOneStepSampler", "SNOOPIModelSampling", "SNOOPIOneStepScheduler",
    "SNOOPICheckpointLoader", "NASAAlphaSweep", "NASAAttentionMap",
)  # fmt: skip
WITH, WITHOUT = "With the negative prompt", "Without"
DEMO_MODEL = "snoopi-shapes.safetensors"
PUBLISHED = "sd_turbo.safetensors"  # of the teaching graphs; the tests put the demo model in its place
WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
DEMO = [path for path in WORKFLOWS if DEMO_MODEL in path.read_text()]
TEACHING = [path for path in WORKFLOWS if PUBLISHED in path.read_text()]
TEMPLATES = [path for path in WORKFLOWS if path not in DEMO + TEACHING]  # for other models that the user downloads
AUTO = "06 Auto finds the model"
SWEEP = "93 Demo model, alpha sweep"
PRESETS = yaml.safe_load((PACK / "nodes" / "sampling" / "presets.yaml").read_text())
FOLDERS = {
    "ckpt_name": "checkpoints", "unet_name": "diffusion_models", "lora_name": "loras", "vae_name": "vae",
    "clip_name": "text_encoders", "clip_name1": "text_encoders", "clip_name2": "text_encoders",
    "clip_name3": "text_encoders", "text_encoder": "text_encoders",
}  # fmt: skip


@pytest.fixture(scope="module")
def schemas(server):
    return server.object_info()


@pytest.fixture(scope="module")
def graph(schemas):
    return workflow.load(PACK / "workflows" / "91 Demo model, with and without.json", schemas)


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


@pytest.mark.parametrize("path", DEMO + TEACHING, ids=lambda path: path.stem)
def test_every_workflow_of_the_demo_and_the_teaching_model_runs(server, schemas, path):
    graph = workflow.load(path, schemas)
    if path in TEACHING:  # 512 pixels take their time on two cores
        graph = workflow.with_values(graph, EmptyLatentImage={"width": 64, "height": 64})
    result = server.run(graph)
    assert result.pictures
    for shown in result.pictures.values():
        if "sweep" in path.stem:
            count, height, width, _ = shown.shape
            assert count == 1 and height > 2 * 256 and width > 4 * 256  # eight pictures, four in a row
        else:
            assert shown.shape == ((4, 256, 256, 3) if path in DEMO else (1, 64, 64, 3))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_template_says_which_files_go_where(schemas, path):
    """They cannot run here: what is checked is that the note, the loaders and the presets belong together."""
    nodes = json.loads(path.read_text())["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if "Note" in node["type"])
    needs_newer = "needs a newer ComfyUI" in note
    if needs_newer and (unknown := {node["type"] for node in nodes} - set(schemas) - {"MarkdownNote"}):
        pytest.skip(f"This ComfyUI has no {', '.join(unknown)}.")
    offered = {file["name"]: file["directory"] for node in nodes for file in node["properties"].get("models", [])}
    graph, files = workflow.load(path, schemas), {}
    for node in graph.values():
        for name, value in node["inputs"].items():
            if name in FOLDERS:
                files[value] = folder = FOLDERS[name]
                written = rf"^\d\. .*`{re.escape(value)}`.* into `models/{folder}`"
                assert offered.get(value) == folder or re.search(written, note, re.MULTILINE)
            elif options := options_of(schemas[node["class_type"]], name):
                assert value in options or needs_newer
    samplers = [node["inputs"] for node in graph.values() if "preset" in node["inputs"]]
    (size,) = (node["inputs"] for node in graph.values() if "height" in node["inputs"])
    for preset in {inputs["preset"] for inputs in samplers} - {"auto"}:
        row = PRESETS[preset]
        assert set(row["folder"].split(", ")) & set(files.values())  # test_names.py: which of them it is known by
        assert f"`{preset}`" in note and size["width"] == row.get("resolution", size["width"])
        assert f"{row['alpha']:g}" in note if "alpha" in row else "alpha" in note
    assert all(inputs.get("negative") for inputs in samplers if "seed" in inputs)
    alphas = {node["inputs"]["alpha"] for node in graph.values() if "alpha" in node["inputs"]}
    assert all(alpha == -1 or f"**alpha** {alpha:g}" in note for alpha in alphas)


def options_of(schema, name):
    """What a combo offers; None for another input."""
    inputs = schema["input"]["required"] | schema["input"].get("optional", {})
    kind, *rest = inputs.get(name, [None])  # None: an input that an option of a combo brings
    return kind if isinstance(kind, list) else rest[0].get("options") if kind == "COMBO" else None


@pytest.mark.parametrize("node", NODES)
def test_help_page_and_its_pictures_are_served(server, node):
    page = server.request(f"extensions/ComfyUI-SNOOPI/docs/{node}.md").decode()
    pictures = re.findall(r"!\[.+\]\((.+)\)", page)
    assert page.startswith("# ") and pictures
    for picture in pictures:
        assert server.request(f"extensions/ComfyUI-SNOOPI/docs/{picture}").startswith(b"\x89PNG")


def test_auto_says_what_it_took(server, schemas):
    prompt = workflow.load(PACK / "workflows" / f"{AUTO}.json", schemas)
    chosen = {"SNOOPICheckpointLoader": {"model_name": f"checkpoints/{DEMO_MODEL}"}}
    prompt_id = server.queue(workflow.with_values(prompt, SNOOPIOneStepSampler={"seed": 77, "alpha": 1.3}, **chosen))
    server.wait(prompt_id)
    outputs = json.loads(server.request(f"history/{prompt_id}"))[prompt_id]["outputs"]
    said = {prompt[node_id]["class_type"]: output["text"] for node_id, output in outputs.items() if "text" in output}
    (sampler,), (loader,) = said["SNOOPIOneStepSampler"], said["SNOOPICheckpointLoader"]
    for sentence in (sampler, loader):
        assert f"the file {DEMO_MODEL} says so itself). " in sentence and "timesteps 625; eps; vp noise." in sentence
    assert "Negative strength 1.3. Preset" in sampler


def test_corrupt_file_is_one_sentence(server, schemas, base):
    bad = base / "models" / "checkpoints" / "corrupt.safetensors"
    bad.write_bytes(b"not a model" * 100)
    name = f"checkpoints/{bad.name}"
    try:
        prompt = workflow.load(PACK / "workflows" / f"{AUTO}.json", schemas)
        with pytest.raises(Refused, match=r"\): corrupt.safetensors is corrupt or incomplete: download it again"):
            server.run(workflow.with_values(prompt, SNOOPICheckpointLoader={"model_name": name}))
    finally:
        bad.unlink()


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
    stock = workflow.load(PACK / "workflows" / "92 Demo model, CFG.json", schemas)
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


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_box_switches_nasa_off(server, graph, text):
    """Through a conditioning node too: the picture is the one without a negative."""
    seed = {"SNOOPIOneStepSampler": {"seed": 77}}
    negative = next(node_id for node_id, node in graph.items() if node["_meta"]["title"] == "Negative prompt")
    early = {"class_type": "ConditioningSetTimestepRange", "_meta": {"title": "Early"},
             "inputs": {"conditioning": [negative, 0], "start": 0.0, "end": 0.9}}  # fmt: skip
    through = workflow.with_values(graph | {"early": early}, NASACrossAttentionPatch={"negative": ["early", 0]})
    without = pictures(server, graph, WITHOUT, **seed)
    for wired in (graph, through):
        strong = {"NASACrossAttentionPatch": {"alpha": 1.0}, **seed}
        assert not np.array_equal(pictures(server, wired, WITH, **strong), without)
        assert np.array_equal(pictures(server, wired, WITH, **strong, **{"Negative prompt": {"text": text}}), without)


@pytest.mark.parametrize("input", ["model", "latent_image"])
def test_nothing_for_a_link_over_the_api_is_one_sentence(server, graph, input):
    bad = workflow.with_values(graph, SNOOPIOneStepSampler={input: None})
    with pytest.raises(Refused, match=f"{input} is empty: connect"):
        server.run(workflow.only(bad, WITHOUT))


def test_nan_alpha_is_refused(server, graph):
    bad = workflow.with_values(graph, NASACrossAttentionPatch={"alpha": float("nan")})
    with pytest.raises(Refused, match="alpha"):
        server.run(workflow.only(bad, WITH))


def test_unknown_preset_is_refused(server, graph):
    bad = workflow.with_values(graph, SNOOPIOneStepSampler={"preset": "no such model"})
    with pytest.raises(Refused, match="SNOOPIOneStepSampler.*no such model"):
        server.run(workflow.only(bad, WITH))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"count": 0}, "NASAAlphaSweep.*count is 0.*from 1 to 30"),
        ({"alpha_from": 0.5, "alpha_to": 0.5}, "NASAAlphaSweep.*both 0.5.*apart"),
        ({"alpha_to": float("nan")}, "NASAAlphaSweep.*alpha_to is nan.*from 0 to 10"),
        ({"alpha_to": {"a": 1}}, "NASAAlphaSweep.*alpha_to is {'a': 1}: give it a number"),
    ],
)
def test_an_empty_sweep_is_refused_before_the_run(server, schemas, inputs, sentence):
    graph = workflow.load(PACK / "workflows" / f"{SWEEP}.json", schemas)
    with pytest.raises(Refused, match=sentence):
        server.queue(workflow.with_values(graph, NASAAlphaSweep=inputs))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"alpha": 11}, "alpha is 11.*from 0 to 10"),
        ({"alpha": -1}, "alpha is -1.*from 0 to 10"),
        ({"alpha": float("nan")}, "alpha is nan.*from 0 to 10"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent is 0.8 and end_percent 0.2.*not after the end"),
        ({"norm_limit": 0.5}, "norm_limit is 0.5.*from 1 on.*0 to switch it off"),
        ({"rule": "none"}, "There is no rule called none: choose auto, nasa, difference, vsf"),
        ({"alpha": {"a": 1}}, "alpha is {'a': 1}: give it a number"),
        ({"norm_limit": {"a": 1}}, "norm_limit is {'a': 1}: give it a number"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_run(server, graph, inputs, sentence):
    """So that ComfyUI 0.33, which hides what a node raises, shows them whole."""
    with pytest.raises(Refused, match=f"NASACrossAttentionPatch.*{sentence}"):
        server.queue(workflow.only(workflow.with_values(graph, NASACrossAttentionPatch=inputs), WITH))


def interrupt(server, prompt_id):
    """Until it is over: ComfyUI forgets an interruption that comes before the run, as it may on a busy machine."""
    time.sleep(0.5)
    for _ in range(100):
        server.interrupt()
        with suppress(TimeoutError):
            with pytest.raises(Interrupted):
                server.wait(prompt_id, timeout=0.5)
            return
    pytest.fail("It could not be interrupted.")


def test_a_sweep_can_be_cancelled_and_run_again(server, schemas):
    graph = workflow.load(PACK / "workflows" / f"{SWEEP}.json", schemas)
    before = server.run(workflow.with_values(graph, NASAAlphaSweep={"seed": 41})).pictures
    long = workflow.with_values(graph, NASAAlphaSweep={"seed": 42, "count": 30}, EmptyLatentImage={"batch_size": 100})
    interrupt(server, server.queue(long))
    server.run(workflow.with_values(graph, NASAAlphaSweep={"seed": 43, "count": 1}))
    after = server.run(workflow.with_values(graph, NASAAlphaSweep={"seed": 41})).pictures
    assert all(np.array_equal(before[node], after[node]) for node in before)


def test_interrupt_leaves_nothing_behind(server, graph):
    before = pictures(server, graph, WITHOUT, SNOOPIOneStepSampler={"seed": 31})
    long = workflow.with_values(graph, SNOOPIOneStepSampler={"seed": 32}, EmptyLatentImage={"batch_size": 4000})
    interrupt(server, server.queue(workflow.only(long, WITH)))
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
