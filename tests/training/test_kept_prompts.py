"""Prompts are encoded once: kept in the run folder, used at the next start, made again when damaged or of others."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from training.distill import distill
from training.networks.backbones import load_backbone
from training.networks.backbones.stable_diffusion import StableDiffusion
from training.prompts.embeddings import PromptEmbeddings
from training.prompts.kept import FILE
from training.recipe.config import parse
from training.run.checkpoint import load
from training.run.made_of import made_of, text_of

PROMPTS = ["a red circle", "blue", "a pet", "blue"]


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """All prompts that the real text encoder reads, in order."""
    read, original = [], StableDiffusion.encode

    def encode(self, prompts):
        read.extend(prompts)
        return original(self, prompts)

    monkeypatch.setattr(StableDiffusion, "encode", encode)
    return read


@pytest.fixture(scope="module")
def backbone(teacher):
    return load_backbone("stable_diffusion", str(teacher))


def embeddings(backbone, folder: Path, made: str = "x", prompts: list[str] = PROMPTS) -> PromptEmbeddings:
    return PromptEmbeddings(backbone, prompts, 64, run=folder, made_of=made)


def test_a_resumed_run_encodes_no_prompt_again_and_trains_the_same_bits(settings, tmp_path, encoded):
    short = settings | {"warm_start": None, "steps": 2, "sample_every": 9}
    distill(parse(short | {"steps": 1}))
    assert encoded.count("a blue square") == 1
    encoded.clear()
    resumed = distill(parse(short), resume=True)
    assert not {"a red circle", "a blue square", "a pet"} & set(encoded)  # but the null and the grid's prompts
    whole = distill(parse(short | {"output": str(tmp_path / "whole")}))
    one, other = load(resumed).weights["student"], load(whole).weights["student"]
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_read_is_what_was_encoded_to_the_bit(backbone, tmp_path, encoded):
    fresh, read = embeddings(backbone, tmp_path), embeddings(backbone, tmp_path)
    assert encoded.count("blue") == 1
    for one, other in zip(vars(fresh.batch([3, 0])).values(), vars(read.batch([3, 0])).values(), strict=True):
        assert one is other is None or torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_masks_and_pooled_vectors_are_kept_too(sdxl, pixart, tmp_path):
    for kind, source in (("stable_diffusion_xl", sdxl), ("pixart", pixart)):
        loaded, folder = load_backbone(kind, str(source)), tmp_path / kind
        fresh, read = embeddings(loaded, folder).batch([0, 2]), embeddings(loaded, folder).batch([0, 2])
        assert (read.mask is None, read.pooled is None) == (fresh.mask is None, fresh.pooled is None)
        assert torch.equal(fresh.embeddings, read.embeddings)
        assert torch.equal(
            fresh.mask if kind == "pixart" else fresh.pooled, read.mask if kind == "pixart" else read.pooled
        )


def contents(path: Path) -> tuple[list, dict]:
    with safetensors.safe_open(path, "pt") as file:
        return [file.get_tensor(name).tolist() for name in sorted(file.keys())], file.metadata()


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "one bit": one_bit,
    "empty": lambda path: path.write_bytes(b""),
    "no numbers of ours": lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path),
    "a name too many": lambda path: safetensors.torch.save_file(
        safetensors.torch.load_file(path) | {"more": torch.zeros(1)}, path, {"made_of": "x"}
    ),
    "of others": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_stale_file_is_made_again_with_a_word(backbone, tmp_path, encoded, capsys, damage):
    embeddings(backbone, tmp_path)
    wanted = contents(tmp_path / FILE)
    if DAMAGE[damage]:
        DAMAGE[damage](tmp_path / FILE)
    encoded.clear()
    embeddings(backbone, tmp_path, "x" if DAMAGE[damage] else "y")
    told = capsys.readouterr().err
    assert "prompts.safetensors is not used: " in told and "the prompts are encoded again." in told
    assert encoded.count("a red circle") == 1
    assert (contents(tmp_path / FILE) == wanted) == bool(DAMAGE[damage])
    embeddings(backbone, tmp_path, "x" if DAMAGE[damage] else "y")
    assert encoded.count("a red circle") == 1 and capsys.readouterr().err == ""


def test_the_key_changes_with_prompts_text_encoders_and_every_tokenizer(sdxl, tmp_path):
    shutil.copytree(sdxl, tmp_path / "t")

    def key(prompts=PROMPTS, **tokenizers) -> str:
        loaded = load_backbone("stable_diffusion_xl", str(tmp_path / "t"))
        loaded.tokenizers |= tokenizers
        return text_of(made_of(loaded, prompts, encodes=True))

    found = [key(), key(PROMPTS[:3]), key(text_encoder_2=lambda texts: SimpleNamespace(input_ids=[[1, 2]]))]
    for part in ("text_encoder", "text_encoder_2"):
        path = tmp_path / "t" / part / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        name = min(tensors, key=lambda name: tensors[name].numel())
        safetensors.torch.save_file(tensors | {name: tensors[name] + 1}, path, {"format": "pt"})
        found.append(key())
    assert len(set(found)) == 5 and "null" not in found[0]
