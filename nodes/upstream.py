"""What the graph that runs holds before a node."""

from comfy_api.latest import io


def node_of(graph, node_id: str) -> dict:
    """A node of ComfyUI's dynprompt, or of a prompt in API form: its class_type and inputs; {} for none."""
    there = node_id in graph if isinstance(graph, dict) else graph.has_node(node_id)
    return (graph[node_id] if isinstance(graph, dict) else graph.get_node(node_id)) if there else {}


def texts_before(node: type[io.ComfyNode], name: str) -> list[str]:
    """Every text that was typed into a node before the input `name` of this one, the nearest first."""
    graph = node.hidden.dynprompt if node.hidden else None
    if not graph:
        return []
    waiting, seen, texts = [node_of(graph, str(node.hidden.unique_id)).get("inputs", {}).get(name)], set(), []
    for link in waiting:
        if isinstance(link, str):
            texts.append(link)
        elif is_link(link) and link[0] not in seen:
            seen.add(link[0])
            waiting += node_of(graph, link[0]).get("inputs", {}).values()
    return texts


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
