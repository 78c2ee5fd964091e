"""What a model was made of: the file it was loaded from and the LoRAs on it, as far as that can be known."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher

from .files import LORAS, ModelFile, changes_text, file_of, name_of, path_of, remembered
from .graph import Graph, names, sources
from .loras import is_merged, loras_of
from .weights import holds


@dataclass(frozen=True)
class Origin:
    """Files a model was made of.

    bases: the file it was loaded from; several if it was one of them, or if they are mixed; None for one not known.
    loras: the LoRAs that act on it, the nearest first.
    unknown_lora: whether a LoRA acts on it that is none of them.
    idle: LoRAs that stand in the graph before it and change nothing in it.
    """

    bases: tuple[ModelFile | None, ...] = (None,)
    loras: tuple[ModelFile, ...] = ()
    unknown_lora: bool = False
    idle: tuple[str, ...] = ()


def origin_of(model: ModelPatcher, graph: Graph = None, node_id: str | None = None) -> Origin:
    """What `model` was made of: by what it carries, else by the graph before the node `node_id`.

    Where several loaders may have loaded it, the weights tell which.

    Args:
        graph: what runs, as ComfyUI's hidden inputs DYNPROMPT or PROMPT give it; None if there is none.
    """
    carried = _carried(model)
    if carried is None or is_merged(model):
        paths = sources(graph, node_id)
        if len(paths) > 1 and not is_merged(model):
            paths = {path for path in paths if path and holds(path, model)} or paths
        bases = {carried} if carried else set()
        bases |= {file_of(model, path) if path else None for path in paths}
    else:
        bases = {carried}
    loras, unknown = loras_of(model, _loras_in(list(names(graph, node_id))))
    files = tuple(sorted(bases, key=lambda file: file.name if file else ""))
    acting = tuple(
        dataclasses.replace(file_of(model, path), strength=strength, changes_text=changes_text(path))
        for path, strength in loras.items()
    )
    before = _loras_in([text for text in names(graph, node_id, "model") if path_of(text, LORAS)])
    return Origin(files, acting, unknown, tuple(name_of(path) for path in before if path not in loras))


def _loras_in(texts: list[str]) -> Iterator[str]:
    """The paths of the LoRAs that texts name: first of texts that are a name, then of those that hold one."""
    yield from (path for text in texts if (path := path_of(text, LORAS)))
    for name in folder_paths.get_filename_list(LORAS[0]):
        if any(Path(name).stem in text for text in texts) and (path := path_of(name, LORAS)):
            yield path


def _carried(model: ModelPatcher) -> ModelFile | None:
    """The file that the model itself says it was loaded from: to our loader, or to ComfyUI since 0.4."""
    file = remembered(model)
    if file is None:
        loader = getattr(model, "cached_patcher_init", None) or (None, ())
        paths = [value for value in loader[1] if isinstance(value, (str, Path)) and Path(value).is_file()]
        file = file_of(model, str(paths[0])) if paths else None
    return file
