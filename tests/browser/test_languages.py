"""The real frontend in another language: our nodes' names and help pages are translated."""

import json

import pytest

from browser.chromium import FOLDER
from browser.test_frontend import frontend
from comfyui.serve import PACK

NODE = "NASACrossAttentionPatch"
#: ComfyUI 0.3.75's frontend loses the names of every node pack (Comfy-Org/ComfyUI_frontend#6748, mended by #7214).
LOSES_NAMES = "() => window.__COMFYUI_FRONTEND_VERSION__.startsWith('1.32.')"
SHOWN = """type => {
    const node = LiteGraph.createNode(type)
    const labels = (slots, name) => slots.map(slot => [slot.name, name(slot)])
    const inputs = labels(node.inputs, slot => slot.localized_name)
    const widgets = labels(node.widgets ?? [], widget => widget.label)
    return {title: node.title, inputs: Object.fromEntries(inputs), widgets: Object.fromEntries(widgets),
            outputs: node.outputs.map(slot => [slot.localized_name, slot.name === slot.type])}
}"""
PLACE = """type => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.pos = [0, 0]
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [500, 250]
    app.canvas.setDirty(true, true)
    app.canvas.selectItems([node])  // `select` alone tells the toolbox nothing
}"""


@pytest.fixture(params=("zh", "ja"))
def language(server, request):
    server.request("settings/Comfy.TutorialCompleted", True)
    server.request("settings/Comfy.Locale", request.param)
    yield request.param
    server.request("settings/Comfy.Locale", "en")


def test_server_hands_out_the_translations(server):
    languages = {path.name for path in (PACK / "locales").iterdir()}
    handed_out = json.loads(server.request("i18n"))
    assert languages and languages <= handed_out.keys()
    for name in languages:
        ours = json.loads((PACK / "locales" / name / "nodeDefs.json").read_text(encoding="utf-8"))
        assert handed_out[name]["nodeDefs"].items() >= ours.items()


def test_names_and_help_are_in_the_chosen_language(server, language):
    words = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    with frontend(server.address) as page:
        page.evaluate(PLACE, NODE)
        if not page.evaluate(LOSES_NAMES):
            check_names(page, words)
        page.screenshot(path=FOLDER / f"node in {language}.png")
        page.get_by_test_id("info-button").click()
        title = (PACK / "web" / "docs" / NODE / f"{language}.md").read_text(encoding="utf-8").splitlines()[0]
        page.get_by_role("heading", name=title.removeprefix("# "), exact=True).wait_for()
        picture = page.locator(".node-help-content img")
        picture.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        assert picture.evaluate("image => image.naturalWidth") > 0
        page.screenshot(path=FOLDER / f"help in {language}.png")


def check_names(page, words):
    for type, node in words.items():
        shown = page.evaluate(SHOWN, type)
        labels = shown["inputs"] | shown["widgets"]
        assert shown["title"] == node["display_name"]
        assert {name: labels[name] for name in node["inputs"]} == {
            name: entry["name"] for name, entry in node["inputs"].items()
        }
        for slot, (label, is_type) in enumerate(shown["outputs"]):
            assert is_type or label == node["outputs"][str(slot)]["name"], type
