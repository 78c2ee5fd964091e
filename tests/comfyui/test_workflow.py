"""From the frontend's form to the API form, where no server is needed; tests/browser compares with the frontend."""

import pytest

from comfyui import workflow

SCHEMAS = {
    "Source": {
        "display_name": "A source",
        "input": {"required": {"seed": ["INT", {}], "mode": [["a", "b"], {}]}, "optional": {"text": ["STRING", {}]}},
    },
    "Sink": {"display_name": "A sink", "input": {"required": {"thing": ["THING"], "prefix": ["STRING", {}]}}},
}


def saved(**source):
    node = {"id": 1, "type": "Source", "order": 0, "mode": 0, "widgets_values": [7, "fixed", "b", "words"], **source}
    slots = [{"name": "thing", "link": 3}, {"name": "prefix", "link": None}]
    sink = {"id": 2, "type": "Sink", "order": 1, "mode": 0, "inputs": slots, "widgets_values": ["x"], "title": "End"}
    note = {"id": 5, "type": "MarkdownNote", "order": 2, "mode": 0, "widgets_values": ["hello"]}
    return {"nodes": [note, sink, node], "links": [[3, 1, 0, 2, 0, "THING"]]}


def test_links_and_widgets():
    assert workflow.to_prompt(saved(), SCHEMAS) == {
        "1": {
            "class_type": "Source",
            "inputs": {"seed": 7, "mode": "b", "text": "words"},
            "_meta": {"title": "A source"},
        },
        "2": {"class_type": "Sink", "inputs": {"thing": ["1", 0], "prefix": "x"}, "_meta": {"title": "End"}},
    }


def test_values_by_title_or_type_leave_the_original():
    prompt = workflow.to_prompt(saved(), SCHEMAS)
    changed = workflow.with_values(prompt, End={"prefix": "y"}, Source={"seed": 8})
    assert changed["2"]["inputs"]["prefix"] == "y" and changed["1"]["inputs"]["seed"] == 8
    assert prompt["2"]["inputs"]["prefix"] == "x" and prompt["1"]["inputs"]["seed"] == 7


def test_unknown_names_are_errors():
    prompt = workflow.to_prompt(saved(), SCHEMAS)
    with pytest.raises(KeyError, match="Nobody"):
        workflow.with_values(prompt, Nobody={"seed": 1})
    with pytest.raises(KeyError, match="sead"):
        workflow.with_values(prompt, Source={"sead": 1})


def test_only_keeps_what_an_output_needs():
    prompt = workflow.to_prompt(saved(), SCHEMAS)
    prompt["9"] = {"class_type": "Sink", "inputs": {"prefix": "z"}, "_meta": {"title": "Other"}}
    assert set(workflow.only(prompt, "End")) == {"1", "2"}
    assert set(workflow.only(prompt, "Other")) == {"9"}


def test_a_bypassed_node_is_an_error():
    with pytest.raises(ValueError, match="Source"):
        workflow.to_prompt(saved(mode=workflow.BYPASS), SCHEMAS)


def test_a_combo_whose_options_bring_inputs_and_what_an_older_file_lacks():
    """As Save Video of newer versions: the codec is an input of the format."""
    codec = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "auto", "inputs": {}}, {"key": "h264", "inputs": {}}]}]
    formats = [{"key": "auto", "inputs": {}}, {"key": "mp4", "inputs": {"required": {"codec": codec}}}]
    schema = {"input": {"required": {"format": ["COMFY_DYNAMICCOMBO_V3", {"options": formats}], "fps": ["FLOAT", {}]},
                        "optional": {"codec": codec}}}  # fmt: skip
    new = {"format": "mp4", "format.codec": "h264", "fps": 24.0, "codec": "auto"}
    assert workflow.widget_inputs(schema, ["mp4", "h264", 24.0]) == new
    assert workflow.widget_inputs(schema, ["auto", 24.0]) == {"format": "auto", "fps": 24.0, "codec": "auto"}
