"""Names that are HTML, in the real frontend: they are read, not run."""

import json

import pytest

from browser.test_frontend import FOLDER, LOAD, frontend
from comfyui.serve import PACK, serve

HTML = "<img src=x onerror=window.hacked=1>"
FILE = f"{HTML}instaflow.safetensors"
LOADER = "06 Auto finds the model"
SHOWN = """() => app.graph._nodes.flatMap(node => node.widgets ?? []).map(
    widget => String(widget.value).replace(/\\s+/g, " ")).filter(text => text.startsWith("Running as"))"""
#: Runs the graph; gives the error, or "". A newer ComfyUI refuses what is not in a list, and no event comes.
RUN = """() => new Promise(resolve => {
    for (const kind of ["execution_success", "execution_error"])
        app.api.addEventListener(kind, event => resolve(event.detail.exception_message ?? ""))
    app.queuePrompt(0).then(() => setTimeout(() => {
        const refused = JSON.stringify(app.lastNodeErrors ?? {})
        if (refused !== "{}") resolve(refused)
    }, 1000))
    setTimeout(() => resolve("no answer"), 60000)
})"""
REFUSED = "not in list"
LISTS = """() => app.graph._nodes.flatMap(node => node.widgets ?? []).filter(
    widget => Array.isArray(widget.options?.values)).map(
    widget => new LiteGraph.ContextMenu(widget.options.values, {}).root.textContent)"""


@pytest.fixture(scope="module")
def page_and_table(tmp_path_factory, untrained_checkpoint):
    base = tmp_path_factory.mktemp("html")
    (base / "models" / "checkpoints").mkdir(parents=True)
    for name in ("snoopi-shapes.safetensors", FILE):
        (base / "models" / "checkpoints" / name).symlink_to(untrained_checkpoint)
    (base / "user").mkdir()
    row = "{prediction: eps, timesteps: [9]}"
    (base / "user" / "snoopi_presets.yaml").write_text(f'"{HTML}": {row}', encoding="utf-8")
    with serve(base) as server:
        server.request("settings/Comfy.TutorialCompleted", True)
        with frontend(server.address) as page:
            yield page, base / "user" / "snoopi_presets.yaml"


def load(page, **values):
    graph = json.loads((PACK / "workflows" / f"{LOADER}.json").read_text())
    values["EmptyLatentImage"] = [64, 64, 1]
    for node in graph["nodes"]:
        if given := values.get(node["type"]):
            node["widgets_values"][: len(given)] = given
    page.evaluate(LOAD, [graph, "html"])


def is_hacked(page):
    page.wait_for_timeout(2000)  # a picture that does not load is found out a moment later
    return page.evaluate("() => window.hacked")


def test_b12_a_file_and_a_preset_whose_names_are_html(page_and_table):
    """A file that is there, in the text on both nodes, beside a bad row; then the lists; then an error about a file."""
    page, _ = page_and_table
    preset = "snoopi-shapes"
    load(page, SNOOPICheckpointLoader=[f"checkpoints/{FILE}", preset], SNOOPIOneStepSampler=[1, "fixed", preset])
    told = page.evaluate(RUN)
    if REFUSED not in told:
        assert not told
        page.wait_for_function(f"({SHOWN})().length == 2")
        shown = page.evaluate(SHOWN)
        assert all("the row ‹img src=x onerror=window.hacked=1› has ‹ or › in its name" in text for text in shown)
    assert not is_hacked(page)

    lists = page.evaluate(LISTS)
    assert any("snoopi-shapes.safetensors" in text for text in lists) and "instaflow" in "".join(lists)
    assert not is_hacked(page)

    load(page, SNOOPICheckpointLoader=[f"checkpoints/{HTML}gone.safetensors"])
    assert "gone.safetensors" in page.evaluate(RUN)
    assert not is_hacked(page)
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FOLDER / "names that are HTML.png")


def test_b12_a_file_name_that_is_html_under_auto(page_and_table):
    page, table = page_and_table
    table.unlink()
    load(page, SNOOPICheckpointLoader=[f"checkpoints/{FILE}"], SNOOPIOneStepSampler=[2])
    told = page.evaluate(RUN)
    if REFUSED not in told:
        assert not told
        page.wait_for_function(f"({SHOWN})().length == 2")
        assert all("the file ‹img src=x onerror=window.hacked=1›instaflow" in text for text in page.evaluate(SHOWN))
    assert not is_hacked(page)
