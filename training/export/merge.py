"""The weighted mean of exported students: `python -m training merge A B --weights .5 .5`.

SwiftBrush v2 (arXiv 2408.14176) reports its figures of such a mean. Of LoRAs the mean of what they change is taken: the
matrices go side by side, so that the rank is the sum of theirs. One tensor of each file is in memory at a time, and the
result.
"""

import datetime
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import UserError, quoted
from ..files import atomic_file, save_tensors, scratch_folder
from . import check_arguments, export
from .card import write_card
from .families import Layout
from .headers import Shapes, family_told, kind_of, read_header
from .metadata import NO_HASH, write_hash

#: What two students of one kind may say differently: what they were made from, and how they were trained.
FREE = {f"snoopi.{key}" for key in ("base_model", "base_model_license", "config_sha256", "kappa_min", "kappa_max")}
FREE |= {"snoopi.merged"}
COMPARED = ("modelspec.architecture", "modelspec.prediction_type")  # and all of ours that is not free
NETWORK = ("model.diffusion_model.", "")  # of a checkpoint this alone was trained; other files hold nothing else
NEAR = 2e-3  # of 1: 0.333 thrice
DOWN, UP = (".lora_down.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Part:
    """One of the files: how sentences call it, its share of the mean, and its header."""

    name: str
    path: Path
    weight: float
    shapes: Shapes
    metadata: dict[str, str]


def merge(
    sources: Sequence[str],
    output: str | Path,
    weights: Sequence[float] | None = None,
    title: str | None = None,
    layout: Layout | None = None,
    half: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the mean of two or more students. sources: exported files; of run folders the student is exported first.

    weights: a share of each, about 1 together; by default all alike. layout, half: of run folders, as `export` takes
    them. tell: gets a line for each finding.

    Raises UserError where the files are no students of one kind (their layout, family, tensors, start and prediction),
    or one holds NaN.
    """
    output = Path(output)
    check_arguments(output, {"--title": title})
    shares = _shares(len(sources), weights)
    if same := [source for source in sources if output.exists() and Path(source).exists() and output.samefile(source)]:
        raise UserError(f"--output is {quoted(same[0])}, one of the files to merge; give another name.")
    with atomic_file(output) as temporary, scratch_folder(output) as folder:
        parts = []
        for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
            path = Path(source)
            if path.is_dir():
                path = folder / f"{number}.safetensors"
                told = {"title": Path(source).resolve().name, "check": "diffusers", "tell": tell, "card": False}
                export(source, path, layout, half, **told)
            elif path.suffix != ".safetensors":
                raise UserError(f"{quoted(source)} is neither a run folder nor a .safetensors file; give one of these.")
            parts.append(Part(Path(source).resolve().name, path, share, *read_header(path)))
        _check(parts)
        save_tensors(temporary, mean(parts), merged_metadata(parts, title or output.stem))
        write_hash(temporary)
    write_card(output, read_header(output), tell=tell)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise UserError("One file has no mean; give two or more.")
    weights = [1 / count] * count if weights is None else list(weights)
    if len(weights) != count:
        raise UserError(f"--weights has {len(weights)} numbers for {count} files; give one a file.")
    told = " ".join(f"{weight:g}" for weight in weights)
    total = math.fsum(weights)
    if not all(0 <= weight <= 1 for weight in weights) or abs(total - 1) > NEAR:
        raise UserError(f"--weights {told}: they sum to {total:g}; give numbers from 0 to 1 that sum to 1.")
    return [weight / total for weight in weights]


def _check(parts: list[Part]) -> None:
    """Raises UserError where they have no mean, before any tensor is read."""
    first = parts[0]
    for other in parts[1:]:
        both = f"{quoted(first.name)} and {quoted(other.name)}"
        kinds = kind_of(first.shapes), kind_of(other.shapes)
        if kinds[0] != kinds[1]:
            raise UserError(f"{both} are of two kinds: {kinds[0]}; and {kinds[1]}. Export both alike.")
        families = family_told(first.shapes), family_told(other.shapes)
        if families[0] != families[1]:
            raise UserError(f"{both} are of two families: {families[0]}; and {families[1]}. Merge students of one.")
        for key in sorted(first.metadata.keys() | other.metadata.keys()):
            values = first.metadata.get(key), other.metadata.get(key)
            compared = key in COMPARED or (key.startswith("snoopi.") and key not in FREE)
            if compared and values[0] != values[1]:
                told = (f"`{quoted(value)}`" if value is not None else "not told" for value in values)
                raise UserError(
                    f"{both} have no mean: {quoted(key)} is {' and '.join(told)}. Merge students of one family that "
                    f"start and predict alike."
                )
        if odd := _odd_tensor(first.shapes, other.shapes):
            raise UserError(f"{both} have no mean: {odd}. Merge students of one teacher, exported alike.")


def _odd_tensor(one: Shapes, other: Shapes) -> str:
    """The first tensor that only one has, or that differs in shape or dtype, in words; of LoRAs the rank may differ."""
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return f"only one has {quoted(name)}"
        (shape, dtype), (second, second_dtype) = one[name], other[name]
        free = 0 if name.endswith(DOWN) else 1 if name.endswith(UP) else None
        alike = [size for axis, size in enumerate(shape) if axis != free]
        if alike != [size for axis, size in enumerate(second) if axis != free] or dtype != second_dtype:
            return f"{quoted(name)} is {dtype} {list(shape)} and {second_dtype} {list(second)}"
    return ""


def mean(parts: Sequence[Part]) -> dict[str, Tensor]:
    """All tensors of the merged file. Raises UserError, also for NaN."""
    layers = {name.removesuffix(end) for name in parts[0].shapes for end in DOWN if name.endswith(end)}
    merged: dict[str, Tensor] = {}
    network = next(one for one in NETWORK if any(name.startswith(one) for name in parts[0].shapes))
    with ExitStack() as held:
        files = [held.enter_context(safetensors.safe_open(part.path, "pt")) for part in parts]
        plain = [] if layers else parts[0].shapes
        for name in tqdm(plain, desc="merging", unit="tensor", disable=not plain, dynamic_ncols=True):
            tensors = list(_finite(parts, files, name))
            if all(torch.equal(tensors[0], tensor) for tensor in tensors[1:]):
                merged[name] = tensors[0].clone()
            elif name.startswith(network) and tensors[0].is_floating_point():
                merged[name] = _weighted(parts, tensors)
            else:
                raise UserError(
                    f"{quoted(parts[0].name)} and the others have another {quoted(name)}, which no student trains; "
                    f"merge students of one teacher, or the networks alone (export --format unet)."
                )
        for layer in tqdm(sorted(layers), desc="merging", unit="layer", disable=not layers, dynamic_ncols=True):
            merged |= _side_by_side(parts, files, layer)
    if odd := parts[0].shapes.keys() - merged.keys():
        raise UserError(f"{quoted(parts[0].name)} holds {quoted(min(odd))}, which is no plain LoRA's; merge others.")
    return merged


def _finite(parts: Sequence[Part], files: Sequence, name: str) -> Iterator[Tensor]:
    """That tensor of each file. Raises UserError for NaN or infinity."""
    for part, file in zip(parts, files, strict=True):
        tensor = file.get_tensor(name)
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise UserError(
                f"{quoted(part.name)} holds NaN or infinite numbers in {quoted(name)}; export its run from an earlier "
                f"checkpoint."
            )
        yield tensor


def _weighted(parts: Sequence[Part], tensors: Sequence[Tensor]) -> Tensor:
    """In fp32 (fp64 stays), then as the first."""
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    total = torch.zeros(tensors[0].shape, dtype=wide)
    for part, tensor in zip(parts, tensors, strict=True):
        total += part.weight * tensor.to(wide)
    return total.to(tensors[0].dtype)


def _side_by_side(parts: Sequence[Part], files: Sequence, layer: str) -> dict[str, Tensor]:
    """One layer's LoRA whose change is the mean of the parts' changes, each alpha / rank * up @ down."""
    down, up = ((next(layer + end for end in ends if layer + end in parts[0].shapes)) for ends in (DOWN, UP))
    downs, ups = list(_finite(parts, files, down)), list(_finite(parts, files, up))
    alpha = f"{layer}.alpha"
    alphas = list(_finite(parts, files, alpha)) if alpha in parts[0].shapes else [None] * len(parts)
    scaled = []
    for part, matrix, given in zip(parts, ups, alphas, strict=True):
        scale = part.weight * (1.0 if given is None else float(given) / matrix.shape[1])
        scaled.append((matrix.float() * scale).to(matrix.dtype))
    found = {down: torch.cat(downs), up: torch.cat(scaled, dim=1)}
    if alphas[0] is not None:
        found[alpha] = torch.tensor(float(len(found[down])), dtype=alphas[0].dtype)
    return found


def merged_metadata(parts: Sequence[Part], title: str) -> dict[str, str]:
    """What they all say, and as `snoopi.merged` a JSON list of what each said, with its name and weight."""
    first = parts[0].metadata
    told = {key: value for key, value in first.items() if all(part.metadata.get(key) == value for part in parts)}
    if "modelspec.sai_model_spec" in told:
        told["modelspec.resolution"] = first["modelspec.resolution"]
        told["modelspec.date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        told["modelspec.hash_sha256"] = NO_HASH
    shares = ", ".join(f"{part.weight:g} of {part.name}" for part in parts)
    told |= {"format": "pt", "modelspec.title": title, "modelspec.description": f"The mean of students: {shares}."}
    for key in ("modelspec.license", "snoopi.base_model_license"):
        if licences := list(dict.fromkeys(part.metadata[key] for part in parts if key in part.metadata)):
            told[key] = " and ".join(licences)
    record = [{"file": part.name, "weight": part.weight, "metadata": part.metadata} for part in parts]
    return told | {"snoopi.merged": json.dumps(record)}
