"""Where in the graph a model can have come from, and which files the graph names.

Only a path that the model must have taken counts. Where a switch, a merge or a node that is not understood lies
between, every way is followed, so that the caller sees that there is more than one.
"""

from collections.abc import Iterator

import folder_paths
from comfy_execution.graph import DynamicPrompt

import nodes

from .files import ENDINGS, WHOLE, path_of

Graph = DynamicPrompt | dict | None

#: ComfyUI's own switches: the input that decides, and what is taken if it is false or true.
SWITCHES = {"ComfySwitchNode": ("switch", "on_false", "on_true")}
#: ComfyUI's own nodes that hand on the value of their only widget.
PRIMITIVES = ("PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")
#: Types that any value can have, and parts of the names of types that bundle several values.
ANYTHING = ("*", "COMFY_MATCHTYPE_V3")
BUNDLES = ("PIPE", "CONTEXT")

_expanding: set[str] = set()


def sources(graph: Graph, node_id: str | None, name: str = "model") -> set[str | None]:
    """The paths of all files that the model at an input can have been loaded from; None for one that is not known.

    Args:
        graph: what runs, as ComfyUI's hidden inputs DYNPROMPT or PROMPT give it; None if there is none.
    """
    listed = _nodes(graph)
    if isinstance(graph, DynamicPrompt):
        parents = set(graph.ephemeral_parents.values())
        _expanding.update(str(listed[parent].get("class_type")) for parent in parents if parent in listed)
    link = listed.get(str(node_id), {}).get("inputs", {}).get(name)
    return _sources(listed, link, set()) if is_link(link) else {None}


def names(graph: Graph, node_id: str | None, name: str | None = None) -> Iterator[str]:
    """Every text in the graph, also inside lists and dicts, that of the nearest nodes before `node_id` first.

    With the `name` of an input of that node, only the texts of the nodes before it.
    """
    listed, seen = _nodes(graph), set()
    if name is not None:
        link = listed.get(str(node_id), {}).get("inputs", {}).get(name)
        starts = (link[0],) if is_link(link) else ()
    for start in (str(node_id), *listed) if name is None else starts:
        waiting = [start]
        while waiting:
            node_id = waiting.pop(0)
            if node_id in seen or node_id not in listed:
                continue
            seen.add(node_id)
            for value in listed[node_id].get("inputs", {}).values():
                if is_link(value):
                    waiting.append(value[0])
                else:
                    yield from _texts(value)


def _sources(listed: dict, link: list, seen: set) -> set[str | None]:
    node_id, slot = str(link[0]), link[1]
    if (node_id, slot) in seen:
        return set()
    seen.add((node_id, slot))
    node = listed.get(node_id)
    cls = nodes.NODE_CLASS_MAPPINGS.get((node or {}).get("class_type"))
    kind = _output_type(cls, slot)
    if cls is None or _expands(node, cls):
        return {None}
    if not _can_carry(kind):
        return set()
    found, inputs, described = set(), node.get("inputs", {}), _described(cls)
    for name, value in _taken(listed, node).items():
        if is_link(value) and _can_carry(described.get(name, [None])[0]):
            found |= _sources(listed, value, seen)
        elif not isinstance(value, (str, int, float, bool, list, dict, type(None))):
            found.add(None)  # a value that an expanded node was given, such as the model itself
    for name, options in described.items():
        if _is_combo(options):
            value = constant(listed, inputs.get(name))
            path = path_of(value, WHOLE) if isinstance(value, str) else None
            if path and _lists_models(options):
                found.add(path)
            elif is_link(value) and _lists_models(options):
                found.add(None)
    without_links = not any(is_link(value) for value in inputs.values())
    return found or ({None} if kind == "MODEL" or (kind in ANYTHING and without_links) else set())


def constant(listed: dict, value: object) -> object:
    """`value`, or what ComfyUI's own primitives hold at the end of a link; the link itself where that is not known."""
    for _ in range(8):
        source = listed.get(str(value[0]), {}) if is_link(value) else {}
        if source.get("class_type") not in PRIMITIVES:
            return value
        value = source.get("inputs", {}).get("value")
    return value


def _taken(listed: dict, node: dict) -> dict:
    """The inputs of a node without those that a switch of ComfyUI leaves out."""
    inputs = node.get("inputs", {})
    decides, *branches = SWITCHES.get(node.get("class_type"), (None, None, None))
    value = constant(listed, inputs.get(decides))
    return {branches[value]: inputs.get(branches[value])} if isinstance(value, bool) else inputs


def _expands(node: dict, cls: type) -> bool:
    schema = getattr(cls, "SCHEMA", None)
    return node.get("class_type") in _expanding or bool(getattr(schema, "enable_expand", False))


def _output_type(cls: type | None, slot: object) -> object:
    types = getattr(cls, "RETURN_TYPES", ())
    return types[slot] if isinstance(slot, int) and slot < len(types) else None


def _can_carry(kind: object) -> bool:
    """Whether a model can be behind an input or output of this type; None is a type that is not known."""
    if kind is None:
        return True
    parts = [part.strip() for part in str.split(kind, ",")] if isinstance(kind, str) else []
    return any(part == "MODEL" or part in ANYTHING or any(word in part for word in BUNDLES) for part in parts)


def _described(cls: type) -> dict[str, list]:
    """What a node's class tells of its inputs: {name: [type or choices, options]}."""
    try:
        sections = cls.INPUT_TYPES()
        return {
            name: list(told) if isinstance(told, (list, tuple)) and told else [told]
            for section in ("required", "optional")
            for name, told in sections.get(section, {}).items()
        }
    except Exception:  # another pack's code
        return {}


def _is_combo(told: list) -> bool:
    return bool(told) and (isinstance(told[0], (list, tuple)) or told[0] == "COMBO")


def _lists_models(told: list) -> bool:
    """Whether the files among the choices of a combo are models, rather than LoRAs, autoencoders or text encoders."""
    options = told[1].get("options") if told[0] == "COMBO" and len(told) > 1 else told[0]
    if not isinstance(options, (list, tuple)):
        return True  # a list that the browser fetches
    files = [option for option in options if isinstance(option, str) and option.lower().endswith(ENDINGS)]
    known = {
        name
        for folder in WHOLE
        if folder in folder_paths.folder_names_and_paths
        for file in folder_paths.get_filename_list(folder)
        for name in (file, f"{folder}/{file}")
    }
    return bool(files) and known.issuperset(files)


def _nodes(graph: Graph) -> dict[str, dict]:
    if isinstance(graph, DynamicPrompt):
        return {**graph.original_prompt, **graph.ephemeral_prompt}
    return graph or {}


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
