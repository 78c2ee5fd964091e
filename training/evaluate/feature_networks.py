"""The networks that look at pictures: Inception, CLIPs of open_clip and transformers, or anyone's own.

A network is a row of weights.yaml, or MODULE:CLASS of a module that is installed, made without arguments. It has

    described             {"name": ..., "sha256": ...}: what goes into result.json
    pictures(uint8 [n, height, width, 3])  -> fp32 [n, width]
    texts(list of n)                       -> fp32 [n, width], where it reads text
"""

import hashlib
import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
import yaml
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from ..errors import UserError, quoted
from ..networks.backbones.sources import load_model, load_tokenizer

OWN_PACKAGE = __package__.partition(".")[0]


class Network(Protocol):
    described: dict[str, Any]

    def pictures(self, pixels: numpy.ndarray) -> Tensor: ...


def rows() -> dict[str, dict[str, Any]]:
    """{name: its row of weights.yaml}"""
    return yaml.safe_load(Path(__file__).with_name("weights.yaml").read_text(encoding="utf-8"))


def known_row(name: str) -> dict[str, Any]:
    """Raises UserError."""
    if name not in rows():
        raise UserError(f"There is no network {quoted(name)}; known are {', '.join(rows())}, or MODULE:CLASS.")
    return rows()[name]


def load_network(name: str, folder: Path, sha256: str | None = None) -> Network:
    """folder: of the weights. sha256: what theirs begins with, instead of what is known. Raises UserError."""
    if ":" in name:
        return plugged_in(name, "pictures")
    row = known_row(name)
    path = folder / row["file"]
    if not path.exists():
        raise UserError(
            f"{quoted(name)} needs {quoted(path)} ({row['megabytes']} MB); get it from {row['where']}, or give the "
            f"folder that holds it with --weights."
        )
    found = sha256_of(path)
    if not found.startswith(wanted := sha256 or row.get("sha256", "")):
        raise UserError(
            f"{quoted(path)} is another file than its name says: its SHA-256 is {found[:16]}... and should begin with "
            f"{quoted(wanted)}; get it from {row['where']}."
        )
    described = {"name": name, "file": row["file"], "sha256": found}
    made = {"torch-fidelity": Inception, "open_clip": OpenClip, "transformers": TransformersClip}[row["library"]]
    return made(path, row, described)


def plugged_in(name: str, *methods: str) -> Any:
    """MODULE:CLASS, made. A module of the trainer's own begins with `training.`. Raises UserError."""
    module, _, what = name.partition(":")
    if module.partition(".")[0] == "training":
        module = OWN_PACKAGE + module.removeprefix("training")
    try:
        made = getattr(importlib.import_module(module), what)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"There is no {quoted(name)} ({quoted(error)}); write MODULE:CLASS of an installed one."
        ) from None
    if not isinstance(made, type) or any(not hasattr(made, method) for method in methods):
        raise UserError(f"{quoted(name)} is no class with {' and '.join(methods)}.")
    return made()


class Inception:
    """Inception-v3 of 2015-12-05 by torch-fidelity, 2048 wide. It brings pictures to 299 pixels as TF 1 did."""

    def __init__(self, path: Path, row: dict[str, Any], described: dict[str, Any]):
        import torch_fidelity
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.described = described | {"library": f"torch-fidelity {torch_fidelity.__version__}"}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.load(path, weights_only=True)  # torch-fidelity unpickles: nothing but tensors may be in there
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], str(path)).to(self.device)
        except Exception as error:
            raise _unreadable(path, row, error) from None

    @torch.no_grad()
    def pictures(self, pixels: numpy.ndarray) -> Tensor:
        (features,) = self.network(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))
        return features.float().cpu()


class OpenClip:
    """A CLIP of open_clip with local weights: safetensors, or a pickle of nothing but tensors; or a folder with its own
    open_clip_config.json."""

    def __init__(self, path: Path, row: dict[str, Any], described: dict[str, Any]):
        import open_clip

        self.described = described | {"library": f"open_clip {open_clip.__version__}", "model": row["model"]}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        name = f"local-dir:{path}" if path.is_dir() else row["model"]
        weights = {} if path.is_dir() else {"pretrained": str(path)}
        try:
            self.network, _, self.prepare = open_clip.create_model_and_transforms(name, **weights, device=self.device)
            self.tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:
            raise _unreadable(path, row, error) from None
        self.network.eval()

    @torch.no_grad()
    def pictures(self, pixels: numpy.ndarray) -> Tensor:
        from PIL import Image

        prepared = torch.stack([self.prepare(Image.fromarray(one)) for one in pixels])
        return self.network.encode_image(prepared.to(self.device)).float().cpu()

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        return self.network.encode_text(self.tokenizer(texts).to(self.device)).float().cpu()


class TransformersClip:
    """A CLIP folder in transformers' layout, such as PickScore."""

    def __init__(self, path: Path, row: dict[str, Any], described: dict[str, Any]):
        import transformers

        self.described = described | {"library": f"transformers {transformers.__version__}"}
        self.network: CLIPModel = load_model(CLIPModel, str(path), row["file"]).eval()
        self.tokenizer = load_tokenizer(AutoTokenizer, str(path), role=row["file"])
        vision = self.network.config.vision_config
        self.prepare = transformers.CLIPImageProcessor(
            size={"shortest_edge": vision.image_size}, crop_size=vision.image_size
        )

    @torch.no_grad()
    def pictures(self, pixels: numpy.ndarray) -> Tensor:
        values = self.prepare(images=list(pixels), return_tensors="pt").pixel_values
        return self.network.visual_projection(self.network.vision_model(pixel_values=values).pooler_output)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        length = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return self.network.text_projection(self.network.text_model(input_ids=tokens.input_ids).pooler_output)


def sha256_of(path: Path) -> str:
    """Of a file, or of all files of a folder by name. Raises UserError."""
    try:
        if path.is_dir():
            found = hashlib.sha256()
            for file in sorted(file for file in path.iterdir() if file.is_file()):
                found.update(f"{file.name} {sha256_of(file)}\n".encode())
            return found.hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error.strerror or error)}.") from None


def _unreadable(path: Path, row: dict[str, Any], error: Exception) -> UserError:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        raise error
    return UserError(
        f"{quoted(path)} cannot be read as {row['library']}'s {row.get('model', 'Inception')} ({quoted(error)}); get "
        f"it from {row['where']}."
    )
