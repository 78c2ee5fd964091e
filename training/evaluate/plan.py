"""What a recipe would take, and every file that is missing, with its size and where people get it. Loads no weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..recipe.config import load
from ..run.plan import PEAKS, REACHED, forward_flops
from .draw import path_of
from .feature_networks import known_row
from .prompt_set import Prompt, read_prompt_set
from .recipe import Model, Recipe, Variant
from .scores.distribution import DistributionSettings

BYTES_A_PIXEL = 1.8  # a photo as PNG, measured: 1.9 at 256 px, 1.7 at 512
INCEPTION_A_SECOND = 2  # pictures, measured on one busy core
#: What recipes name as references, and where people get it.
REFERENCES = {"val2014": (6640, "http://images.cocodataset.org/zips/val2014.zip (40,504 pictures; unpack it whole)")}


def report(recipe: Recipe, output: Path, weights: Path, count: int | None = None) -> str:
    """What --dry-run prints. Raises UserError for a recipe that cannot be read."""
    lines = [f"# {recipe.basics.title}", ""]
    missing = list(_missing_files(recipe, weights))
    try:
        prompts = read_prompt_set(recipe.prompts, recipe.folder, count)
        total = len(prompts)
    except UserError as error:
        missing.append(f"{error}" + (f" It is {recipe.prompts.where}." if recipe.prompts.where else ""))
        prompts, total = [], (count or recipe.prompts.count or 0) * recipe.prompts.each
    pixels, unknown = 0.0, False
    flops = {role: _flops(recipe.models[role]) for role in {variant.model for variant in recipe.variants.values()}}
    for name, variant in recipe.variants.items():
        told, side = _variant(recipe, name, variant, output, prompts, total, flops[variant.model])
        lines.append(told)
        unknown |= side is None
        pixels += total * (side or 0) ** 2
    lines += [
        "",
        f"pictures:  {total * len(recipe.variants):,} in {len(recipe.variants)} variants",
        f"disk:      {pixels * BYTES_A_PIXEL / 1e9:.2f} GB in {output}" + (" and more, see above" if unknown else ""),
        f"scores:    {', '.join(recipe.scores)}",
    ]
    if any(getattr(settings, "network", "") == "inception" for settings in recipe.scores.values()):
        hours = total * len(recipe.variants) / INCEPTION_A_SECOND / 3600
        lines.append(f"Inception: {hours:.1f} hours on one core, and 5.5 for all of val2014, once")
    lines += ["", f"missing: {len(missing) or 'nothing'}", *(f"  - {one}" for one in missing)]
    return "\n".join(lines)


def _variant(
    recipe: Recipe, name: str, variant: Variant, output: Path, prompts: list[Prompt], total: int, flops: int | None
) -> tuple[str, int | None]:
    """A line about its drawing, and the side of its pictures where it is known. flops: of one forward."""
    model = recipe.models[variant.model]
    if model.pictures == "elsewhere":
        return f"{name}: {total:,} pictures are drawn elsewhere, in {model.path}", recipe.basics.size
    drawn = sum(path_of(output / name, prompt).exists() for prompt in prompts)
    line = f"{name}: {total - drawn:,} pictures to draw" + (f", {drawn:,} are there" if drawn else "")
    if flops is None:
        return line + "; hours are not known before the model is here", recipe.basics.size
    guided = variant.guidance != 1 or variant.guidance_to is not None
    wanted = (total - drawn) * variant.steps * (2 if guided else 1) * flops
    took = [f"{wanted / (peak * 1e12 * REACHED) / 3600:.2f} on an {gpu}" for gpu, peak in PEAKS.items()]
    return line + f"; {wanted / 1e15:.3g} PFLOP, hours: {', '.join(took)}", recipe.basics.size


def _flops(model: Model) -> int | None:
    """Of one forward; None where the model is not here, and of pictures that are drawn elsewhere."""
    if model.is_missing or model.pictures == "elsewhere":
        return None
    try:
        return forward_flops(*_source(model.path, model.teacher, model.backbone))
    except UserError:
        return None


def _source(path: str, teacher: str | None, backbone: str | None) -> tuple[str, str]:
    """The kind of a model and its diffusers folder or hub name. Raises UserError."""
    folder = Path(path).parent.parent if Path(path).parent.name == "checkpoints" else Path(path)
    if (folder / "config.yaml").is_file():
        config = load(folder / "config.yaml")
        return config.backbone, teacher or config.teacher
    return backbone or "stable_diffusion", teacher or path


def _missing_files(recipe: Recipe, weights: Path) -> Iterator[str]:
    for role in dict.fromkeys(variant.model for variant in recipe.variants.values()):
        model = recipe.models[role]
        if Path(model.path).exists():
            continue
        if model.is_missing:
            what = "a folder of pictures ID.png" if model.pictures == "elsewhere" else "a model"
            yield f"{role}: {model.path}, {what}" + (f"; {model.where}" if model.where else "")
        else:
            yield f"{role}: {model.path}, fetched from the hub when it is drawn with (or give a folder: {role}=DIR)"
    yielded: set[str] = set()
    for settings in recipe.scores.values():
        for wanted in _wanted(settings):
            row = known_row(wanted)
            if wanted not in yielded and not (weights / row["file"]).exists():
                yield f"{weights / row['file']}, {row['megabytes']:,} MB; {row['where']}"
            yielded.add(wanted)
        if isinstance(settings, DistributionSettings):
            name = settings.reference
            if name not in yielded and not ((weights / name).is_dir() or Path(name).is_dir()):
                size, where = REFERENCES.get(name, (None, "a folder of real pictures"))
                yield f"{weights / name}, " + (f"{size:,} MB; " if size else "") + where
            yielded.add(name)


def _wanted(settings: Any) -> list[str]:
    names = [getattr(settings, "network", ""), getattr(settings, "judge", "")]
    return [name for name in names if name and ":" not in name]
