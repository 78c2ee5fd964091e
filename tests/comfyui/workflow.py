"""A workflow as the frontend saves it, turned into the API form that the server runs, and changed by node titles.

The same as the frontend's own graphToPrompt, which tests/browser compares it with.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

NEVER, BYPASS = 2, 4  # node modes
WIDGET_TYPES = {"INT", "FLOAT", "FLOAT,INT", "STRING", "BOOLEAN", "COMBO"}
CHOICE_WITH_INPUTS = "COMFY_DYNAMICCOMBO_V3"  # a combo each of whose options brings inputs of its own
SEEDS = {"seed", "noise_seed"}  # the frontend adds "control after generate" to these, wherever they are


def load(path: Path, schemas: dict) -> dict:
    """The API form of a workflow file; ``schemas`` is what the server's /object_info tells."""
    return to_prompt(json.loads(path.read_text()), schemas)


def to_prompt(workflow: dict, schemas: dict) -> dict:
    """The API form {node id: {class_type, inputs, _meta}} of a workflow in the frontend's form.

    Raises ValueError for what the demo's graphs do not use: bypassed nodes, reroutes, primitives, subgraphs.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in sorted(workflow["nodes"], key=lambda node: node["order"]):
        if node["type"] in ("Note", "MarkdownNote") or node["mode"] == NEVER:
            continue
        if node["type"] not in schemas or node["mode"] == BYPASS:
            raise ValueError(f"Node {node['id']} ({node['type']}) is unknown to this server, virtual or bypassed.")
        schema = schemas[node["type"]]
        inputs = widget_inputs(schema, node.get("widgets_values") or [])
        connected = {slot["name"]: links[slot["link"]] for slot in node.get("inputs", []) if slot["link"] is not None}
        title = node.get("title") or schema["display_name"] or node["type"]
        prompt[str(node["id"])] = {
            "inputs": inputs | connected,
            "class_type": node["type"],
            "_meta": {"title": title},
        }
    return prompt


def widget_inputs(schema: dict, values: list) -> dict:
    """A node's widget values by name; the list holds one extra value behind each seed, which the server never sees.

    An optional input that a newer version of a node has takes its default, as in the frontend.
    """
    return dict(_named(schema["input"], iter(values)))


def _named(inputs: dict, values: Iterator, before: str = "") -> Iterator[tuple[str, object]]:
    for section in ("required", "optional"):
        for name, (kind, *rest) in inputs.get(section, {}).items():
            options = rest[0] if rest else {}
            if kind == CHOICE_WITH_INPUTS:
                chosen = next(values, options["options"][0]["key"])
                yield before + name, chosen
                (brought,) = (option["inputs"] for option in options["options"] if option["key"] == chosen)
                yield from _named(brought, values, f"{before}{name}.")
            elif (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput"):
                value = next(values) if section == "required" else next(values, options.get("default"))
                yield before + name, value
                if options.get("control_after_generate") or (kind == "INT" and name in SEEDS):
                    next(values)


def with_values(prompt: dict, **values: dict) -> dict:
    """A copy with other inputs: ``values`` maps a node's title, or else its type, to {input name: value}.

    Raises KeyError if a title or an input is not in the graph.
    """
    changed = copy.deepcopy(prompt)
    for name, inputs in values.items():
        for node in find(changed, name):
            if unknown := set(inputs) - set(node["inputs"]):
                raise KeyError(f"{name} has no input {', '.join(sorted(unknown))}")
            node["inputs"] |= inputs
    return changed


def find(prompt: dict, name: str) -> list[dict]:
    """The nodes with this title, or else all of this type. Raises KeyError if there are none."""
    titled = [node for node in prompt.values() if node["_meta"]["title"] == name]
    found = titled or [node for node in prompt.values() if node["class_type"] == name]
    if not found:
        raise KeyError(f"no node of the graph is called {name}, nor of this type")
    return found


def only(prompt: dict, title: str) -> dict:
    """The part of a graph that the output node ``title`` needs."""
    (output,) = (node_id for node_id, node in prompt.items() if node["_meta"]["title"] == title)
    needed, waiting = {}, [output]
    while waiting:
        node_id = waiting.pop()
        needed[node_id] = prompt[node_id]
        waiting += [value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return needed
