"""The real frontend, reloaded: what a node said before the reload stands on it again."""

import json

from browser.test_frontend import FOLDER, LOAD, QUEUE, READY, SAYS_PRESET, SHOW, SMALL, frontend
from comfyui.serve import PACK

TEMPLATE = PACK / "workflows" / "01 Negative prompt in one step.json"
OF_TWO = PACK / "workflows" / "04 Stock KSampler.json"  # a NASA node and a SNOOPI node
HTML = "<img src=x onerror=window.hacked=1>"
ON_NODE = """() => app.graph._nodes.flatMap(node => node.widgets ?? []).filter(
    widget => widget.name.includes("text-preview")).map(widget => String(widget.value))"""
SAVED = "() => app.graph.serialize().nodes.map(node => node.properties['SNOOPI said']).filter(text => text)"


def test_info_is_there_again_after_a_reload(server):
    server.request("settings/Comfy.TutorialCompleted", True)
    server.request("free", {"free_memory": True})  # a node that is not run anew says nothing
    with frontend(server.address) as page:
        page.evaluate(LOAD, [json.loads(TEMPLATE.read_text()), TEMPLATE.stem])
        page.evaluate(SMALL)
        assert page.evaluate(QUEUE).get("images")
        page.wait_for_function(SAYS_PRESET, arg="SNOOPIOneStepSampler", timeout=60_000)
        said = page.evaluate(ON_NODE)
        assert any(text.startswith("Running as") for text in said)
        page.wait_for_timeout(2000)  # newer frontends save half a second later
        page.reload()
        page.wait_for_function(READY)
        page.wait_for_function("() => app.graph._nodes.length > 1")
        page.wait_for_function(SAYS_PRESET, arg="SNOOPIOneStepSampler", timeout=60_000)
        assert page.evaluate(ON_NODE) == said == page.evaluate(SAVED)
        page.evaluate(SHOW)
        page.wait_for_timeout(500)
        page.screenshot(path=FOLDER / "After a reload.png")


def test_info_in_a_workflow_of_somebody_else_is_read_not_run(server):
    server.request("settings/Comfy.TutorialCompleted", True)
    graph = json.loads(OF_TWO.read_text())
    for node in graph["nodes"]:
        node.setdefault("properties", {})["SNOOPI said"] = {"a": 1} if node["type"].startswith("NASA") else HTML
    with frontend(server.address) as page:
        page.evaluate(LOAD, [graph, "html"])
        page.wait_for_function(f"() => ({ON_NODE})().length > 0", timeout=60_000)
        assert page.evaluate(ON_NODE) == [HTML.replace("<", "‹").replace(">", "›")]  # on our other node alone
        page.wait_for_timeout(2000)
        assert not page.evaluate("() => window.hacked")
