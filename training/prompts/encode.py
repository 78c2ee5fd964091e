"""Encoded prompts on disk: what `python -m training encode` writes and a run with `encoded_prompts` reads.

    FOLDER/index.json                    what is encoded, by what, and in how many shards
    FOLDER/shard-00000.safetensors       embeddings bf16 [tokens of all its prompts, width], offsets int64 [prompts + 1]
                                         and, where the network takes one, pooled bf16 [prompts, width]
    FOLDER/extra-<digest>.safetensors    the same for the null, sample and negative prompts of a config

Nothing is padded: a prompt takes 2 * width bytes a token that counts. Every file appears whole or not at all, so an
interrupted encoding goes on with the first shard that is not there.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from tqdm import tqdm

from .. import COMMAND
from ..errors import UserError, quoted
from ..files import atomic_file, save_tensors
from ..networks.backbones import LatentDiffusion
from ..networks.backbones.sources import is_single_file
from ..networks.text import Text
from ..recipe.config import Nasa
from .read import digest, read_prompts

FORMAT, SHARD, BATCH = 1, 1024, 32  # prompts a shard, prompts a batch
READ_BYTES, PLACES = 4096, 256  # of a weight file: enough to tell one fine-tune from another without reading it all


def encode_prompts(
    folder: Path,
    kind: str,
    backbone: LatentDiffusion,
    prompts: Sequence[str],
    extras: Sequence[str],
    resume: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Encodes prompts, and `extras` (as `extra_texts` gives them), into a folder that this process has claimed.

    kind: the setting `backbone`. resume: go on with what is there; else encode all anew. Shows its progress. Raises
    UserError for a folder that holds the embeddings of other prompts or of another text encoder, and for a full disk.
    stop() is asked between shards; once true, KeyboardInterrupt is raised.
    """
    sample = backbone.encode([extras[0]])
    tokens, width = sample.embeddings.shape[1:]
    index = identity(kind, backbone, prompts)
    if resume and (folder / "index.json").exists():
        _refuse_differences(folder, read_index(folder), index)
    else:
        for old in [*folder.glob("shard-*.safetensors"), *folder.glob("extra-*.safetensors")]:
            old.unlink()
        with atomic_file(folder / "index.json") as temporary:
            shape = {"tokens": tokens, "width": width, "masked": sample.mask is not None}
            if sample.pooled is not None:
                shape["pooled"] = sample.pooled.shape[1]
            temporary.write_text(json.dumps(index | shape, indent=1) + "\n")

    if not (extra := folder / extra_name(extras)).exists():
        _write(extra, [backbone.encode([text]) for text in extras])
    shards = range(0, len(prompts), SHARD)
    missing = [first for first in shards if not shard_path(folder, first).exists()]
    done = len(prompts) - sum(len(prompts[first : first + SHARD]) for first in missing)
    with tqdm(total=len(prompts), initial=done, unit="prompt", desc="encoding prompts", dynamic_ncols=True) as bar:
        for place, first in enumerate(missing):
            texts = []
            for start in range(first, min(first + SHARD, len(prompts)), BATCH):
                texts.append(backbone.encode(prompts[start : min(start + BATCH, first + SHARD)]))
                bar.update(len(texts[-1]))
            _write(shard_path(folder, first), texts)
            if place == 0:
                _check_space(folder, shard_path(folder, first).stat().st_size * (len(missing) - 1))
            if place + 1 < len(missing) and stop():
                bar.close()
                raise KeyboardInterrupt(
                    f"Stopped; {bar.n} of {len(prompts)} prompts are encoded and kept, the same command goes on."
                )


class EncodedPrompts:
    """The reader: rows of memory-mapped shards, as a backbone's `encode` gives them but for the rounding to bf16.

    prompts: the list that is encoded. null: the null prompt, one row. Used in place of PromptEmbeddings.
    """

    def __init__(self, folder: str, kind: str, extras: list[str], backbone: LatentDiffusion, prompts: Sequence[str]):
        """kind: the setting `backbone`. extras: as `extra_texts` gives them.

        Raises UserError for a folder that is not there, not finished, or stale: of other prompts or another text
        encoder.
        """
        self.folder, self.prompts, self.device = Path(folder), prompts, backbone.device
        self.index = read_index(self.folder)
        _refuse_differences(self.folder, self.index, identity(kind, backbone, prompts))
        self._shards: dict[Path, tuple[Any, Tensor, Tensor | None]] = {}
        self._extras = {text: row for row, text in enumerate(extras)}
        self._extra = self.folder / extra_name(list(self._extras))
        shards = [shard_path(self.folder, first) for first in range(0, len(prompts), SHARD)]
        if missing := [path for path in [*shards, self._extra] if not path.exists()]:
            raise UserError(
                f"{quoted(self.folder)} is not complete: {len(missing)} of {len(shards) + 1} files are missing; run "
                f"`{COMMAND} encode` with this config, which goes on where it stopped."
            )
        self.null = self.texts(extras[:1])

    def batch(self, indices: Sequence[int]) -> Text:
        """Embeddings fp32 [n, tokens, width], zero where the mask [n, tokens] is; mask and pooled vectors if the
        encoder has them."""
        return self._rows([(shard_path(self.folder, index), index % SHARD) for index in indices])

    def texts(self, texts: Sequence[str]) -> Text:
        """The same for null, sample and negative prompts of the config. Raises UserError for any other text."""
        if other := [text for text in texts if text not in self._extras]:
            raise UserError(f"{quoted(self.folder)} does not hold `{quoted(other[0])}`; run `{COMMAND} encode` again.")
        return self._rows([(self._extra, self._extras[text]) for text in texts])

    def nulls(self, count: int) -> Text:
        """The null prompt for a batch of `count`, without copies."""
        return self.null.repeat(count)

    def _rows(self, places: list[tuple[Path, int]]) -> Text:
        embeddings = torch.zeros(len(places), self.index["tokens"], self.index["width"])
        mask = torch.zeros(embeddings.shape[:2], dtype=torch.long)
        vectors = []
        for row, (path, number) in enumerate(places):
            rows, offsets, pooled = self._open(path)
            first, end = offsets[number : number + 2].tolist()
            embeddings[row, : end - first] = rows[first:end].float()
            mask[row, : end - first] = 1
            if pooled is not None:
                vectors.append(pooled[number].float())
        pooled = torch.stack(vectors) if vectors else None
        return Text(embeddings, mask if self.index["masked"] else None, pooled).to(self.device)

    def _open(self, path: Path) -> tuple[Any, Tensor, Tensor | None]:
        if path not in self._shards:
            try:
                file = safetensors.safe_open(path, "pt")
                pooled = file.get_tensor("pooled") if "pooled" in self.index else None
                self._shards[path] = file.get_slice("embeddings"), file.get_tensor("offsets"), pooled
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(
                    f"Cannot read {quoted(path)}: {quoted(error)}; delete the file and run `{COMMAND} encode` again."
                ) from None
        return self._shards[path]


def identity(kind: str, backbone: LatentDiffusion, prompts: Sequence[str]) -> dict[str, Any]:
    """What makes encoded prompts usable for a run: the prompts, and what encodes them. kind: the setting `backbone`."""
    return {
        "format": FORMAT,
        "prompts": len(prompts),
        "prompts_sha256": digest(prompts),
        "prompts_a_shard": SHARD,
        "backbone": kind,
        "text_encoder": backbone.parts,
        "text_encoder_sha256": fingerprint(backbone),
    }


def extra_texts(null_prompt: str, sample_prompts: list[str], nasa: Nasa | None) -> list[str]:
    """What a run encodes besides its prompts, each once: the null prompt first."""
    negatives = read_prompts(nasa.prompts) if nasa else []
    return list(dict.fromkeys([null_prompt, *sample_prompts, *negatives]))


def extra_name(texts: Sequence[str]) -> str:
    return f"extra-{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]}.safetensors"


def shard_path(folder: Path, index: int) -> Path:
    """The shard that holds prompt number `index`."""
    return folder / f"shard-{index // SHARD:05d}.safetensors"


def read_index(folder: Path) -> dict[str, Any]:
    """index.json. Raises UserError."""
    try:
        index = json.loads((folder / "index.json").read_text())
        return index | {key: int(index[key]) for key in ("tokens", "width")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(
            f"{quoted(folder)} holds no encoded prompts ({quoted(reason)}); make them with `{COMMAND} encode CONFIG`."
        ) from None


def fingerprint(backbone: LatentDiffusion) -> str | None:
    """SHA-256 that changes with the text encoder or tokenizer; None where their files are not on this machine.

    Small files are read whole, weights at 256 places.
    """
    root = Path(backbone.parts)
    if not root.is_dir():
        import huggingface_hub

        try:
            wanted = ["text_encoder*/*", "tokenizer*/*"]
            root = Path(huggingface_hub.snapshot_download(backbone.parts, allow_patterns=wanted, local_files_only=True))
        except (OSError, ValueError):
            return None
    parts = [part for kind in ("text_encoder*", "tokenizer*") for part in sorted(root.glob(kind)) if part.is_dir()]
    files = [file for part in parts for file in sorted(part.iterdir()) if file.is_file()]
    if is_single_file(backbone.source) and _holds_text_encoder(backbone.source):
        files.append(Path(backbone.source))
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name if path.parent.parent == root else ''} {size}\n".encode())
        with path.open("rb") as file:
            if size <= READ_BYTES * PLACES:
                found.update(file.read())
                continue
            for place in range(PLACES):
                file.seek(place * (size - READ_BYTES) // (PLACES - 1))
                found.update(file.read(READ_BYTES))
    return found.hexdigest()


def _holds_text_encoder(path: str) -> bool:
    with safetensors.safe_open(path, "pt") as file:
        prefixes = ("cond_stage_model.", "conditioner.embedders.", "text_encoders.")
        return any(key.startswith(prefixes) for key in file.keys())  # noqa: SIM118


def _refuse_differences(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError that names what a folder was encoded from and what is asked of it."""
    known = None not in (found.get("text_encoder_sha256"), wanted["text_encoder_sha256"])
    ignored = "text_encoder" if known else "text_encoder_sha256"  # the same files may lie elsewhere
    changed = [key for key in wanted if key != ignored and found.get(key) != wanted[key]]
    if changed:
        told = "; ".join(f"{key} was {found.get(key)} and is {wanted[key]}" for key in changed)
        raise UserError(
            f"{quoted(folder)} holds the embeddings of other prompts or another text encoder ({told}); "
            f"name another folder as encoded_prompts, or delete this one and encode again."
        )


def _write(path: Path, texts: list[Text]) -> None:
    """One file from encoded batches. Raises UserError (disk)."""
    rows, lengths = [], []
    for text in texts:
        for number, embeddings in enumerate(text.embeddings):
            length = len(embeddings) if text.mask is None else int(text.mask[number].sum())
            rows.append(embeddings[:length].to("cpu", torch.bfloat16))
            lengths.append(length)
    tensors = {"embeddings": torch.cat(rows), "offsets": torch.tensor([0, *lengths]).cumsum(0)}
    if texts[0].pooled is not None:
        tensors["pooled"] = torch.cat([text.pooled for text in texts]).to("cpu", torch.bfloat16)
    with atomic_file(path) as temporary:
        save_tensors(temporary, tensors)


def _check_space(folder: Path, needed: int) -> None:
    """Raises UserError, after the first shard, where the others will not fit."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{quoted(folder)} needs about {needed / 2**30:.1f} GiB more and its disk has {free / 2**30:.1f}; free "
            f"some, or name a folder on another disk as encoded_prompts."
        )
