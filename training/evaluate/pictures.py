"""Folders of pictures: what `draw` writes, what `score` reads, and a reference such as COCO's val2014.

FOLDER/drawn.json     what drew them: recipe's settings, prompts, hash of the weights
FOLDER/ID.png         in each a text `snoopi`: the SHA-256 of that drawn.json, so that no two drawings mix
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, PngImagePlugin

from ..errors import UserError, quoted
from ..files import atomic_file
from .prompt_set import Prompt

DRAWN, TAG = "drawn.json", "snoopi"
UNTAGGED = ("model",)  # where it lies, which may be elsewhere on another machine
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Pictures:
    """Pictures of one folder in a fixed order; prompts, where they are drawn ones, in the same.

    side: they are brought to this many pixels where they are not (centre crop to a square, then Lanczos); None: as
    they are, and all must be of one size.
    """

    folder: Path
    paths: tuple[Path, ...]
    prompts: tuple[Prompt, ...] = ()
    side: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, count: int = 16, first: int = 0) -> Iterator[numpy.ndarray]:
        """uint8 [n, height, width, 3] from picture number `first` on. Raises UserError."""
        for start in range(first, len(self), count):
            yield numpy.stack(self.read(range(start, min(start + count, len(self)))))

    def read(self, places: Sequence[int]) -> list[numpy.ndarray]:
        """Those pictures, uint8 [height, width, 3], all of one size. Raises UserError."""
        found = [brought_to(read_picture(self.paths[place]), self.side) for place in places]
        for place, picture in zip(places, found, strict=True):
            if picture.shape != self.shape:
                raise UserError(
                    f"{quoted(self.paths[place])} has {picture.shape[1]} x {picture.shape[0]} pixels and the others "
                    f"{self.shape[1]} x {self.shape[0]}; draw it again, or set the recipe's `size`."
                )
        return found

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        return brought_to(read_picture(self.paths[0]), self.side).shape

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents of all files in their order, and of `side`."""
        found = hashlib.sha256(str(self.side).encode())
        for path in self.paths:
            found.update(hashlib.sha256(_bytes(path)).digest())
        return found.hexdigest()


def read_picture(path: Path) -> Image.Image:
    """RGB. Raises UserError."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"Cannot read the picture {quoted(path)}: {quoted(error)}; draw or copy it again.") from None


def brought_to(image: Image.Image, side: int | None) -> numpy.ndarray:
    """uint8 [side, side, 3]: the middle square by Lanczos, as GigaGAN and DMD2 make them for COCO; None: unchanged."""
    if side is not None and image.size != (side, side):
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.LANCZOS)
    return numpy.asarray(image)


def reference_pictures(folder: Path, side: int | None) -> Pictures:
    """Every picture below a folder, by name. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"There is no reference folder {quoted(folder)}; give its pictures, or another `reference`.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
    if not paths:
        raise UserError(f"The reference folder {quoted(folder)} holds no picture ({', '.join(KINDS)}).")
    return Pictures(folder, tuple(paths), side=side)


def drawn_pictures(folder: Path, prompts: Sequence[Prompt], side: int | None) -> Pictures:
    """One picture for each prompt, by its id. Raises UserError: ids that are missing or too many, drawings mixed."""
    there = {path.relative_to(folder).with_suffix("").as_posix(): path for path in _files(folder)}
    missing = [prompt.id for prompt in prompts if prompt.id not in there]
    if missing:
        raise UserError(
            f"{quoted(folder)} lacks {len(missing)} of {len(prompts)} pictures, the first is {quoted(missing[0])}; "
            f"draw them (the same command goes on), nothing was scored."
        )
    if odd := sorted(set(there) - {prompt.id for prompt in prompts}):
        raise UserError(
            f"{quoted(folder)} holds {len(odd)} pictures of other ids, such as {quoted(odd[0])}: two drawings, or "
            f"another prompt set or --count; move them away."
        )
    pictures = Pictures(folder, tuple(there[prompt.id] for prompt in prompts), tuple(prompts), side)
    if (folder / DRAWN).exists():
        told = tag_of(read_drawn(folder))
        for path in pictures.paths:
            if (found := _tag(path)) != told:
                whose = "another drawing" if found else "no drawing of this trainer"
                raise UserError(
                    f"{quoted(path)} is of {whose}, the others of {quoted(folder / DRAWN)}; delete it and draw again."
                )
    return pictures


def read_drawn(folder: Path) -> dict[str, Any]:
    """drawn.json; {} where there is none, as where pictures were drawn elsewhere. Raises UserError."""
    path = folder / DRAWN
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"Cannot read {quoted(path)} ({quoted(error)}); draw into another --output.") from None


def claim(folder: Path, told: dict[str, Any]) -> None:
    """Writes drawn.json. Raises UserError for a folder that something else was drawn into."""
    before = read_drawn(folder)
    if before and tag_of(before) == tag_of(told):
        return
    if before:
        changed = [key for key in before | told if before.get(key) != told.get(key) and key not in UNTAGGED]
        was = "; ".join(f"{key} was {quoted(before.get(key))} and is {quoted(told.get(key))}" for key in changed)
        raise UserError(f"{quoted(folder)} was drawn by something else ({was}); give another --output, or delete it.")
    if folder.is_dir() and next(_files(folder), None):
        raise UserError(f"{quoted(folder)} holds pictures but no {DRAWN}; give another --output.")
    with atomic_file(folder / DRAWN) as temporary:
        temporary.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def tag_of(told: dict[str, Any]) -> str:
    what = {key: value for key, value in told.items() if key not in UNTAGGED}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def write_picture(path: Path, picture: numpy.ndarray, tag: str) -> None:
    """uint8 [height, width, 3] as PNG, the same bytes whenever it is written. Raises UserError (disk)."""
    described = PngImagePlugin.PngInfo()
    described.add_text(TAG, tag)
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=described)


def _tag(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            return image.info.get(TAG)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"Cannot read the picture {quoted(path)}: {quoted(error)}; draw it again.") from None


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise UserError(f"There is no folder of pictures {quoted(folder)}; draw them first.")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in KINDS and not path.name.startswith("."):
            yield path


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the picture {quoted(path)}: {quoted(error.strerror or error)}.") from None
