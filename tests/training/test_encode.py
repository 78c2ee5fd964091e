"""Encoded prompts on disk against the backbone's own `encode`, with a tiny T5 and a tiny CLIP (random weights)."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from training.commands.encode import encode_config
from training.errors import UserError
from training.networks.backbones import load_backbone
from training.prompts import encode
from training.prompts.encode import EncodedPrompts, extra_texts
from training.recipe.config import parse

PROMPTS = [
    "a red circle",
    "a photo of the pet",
    "blue",
    "a blue square",
    "a person",
    "a photo of a red square of a pet",
]


def encoded(config, backbone, prompts) -> EncodedPrompts:
    extras = extra_texts(config.null_prompt, config.sample_prompts, config.nasa)
    return EncodedPrompts(config.encoded_prompts, config.backbone, extras, backbone, prompts)


@pytest.fixture
def config(pixart, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "SHARD", 2)
    monkeypatch.setattr(encode, "BATCH", 2)
    return configured(tmp_path, backbone="pixart", teacher=str(pixart))


def configured(folder, prompts=PROMPTS, **settings):
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    paths = {"prompts": str(folder / "prompts.txt"), "output": str(folder / "run")}
    encoded = {"encoded_prompts": str(folder / "encoded"), "sample_prompts": ["red", "blue"], "device": "cpu"}
    return parse(paths | encoded | settings)


def test_t5_is_stored_without_padding_and_read_as_encoded(config, capsys):
    folder = encode_config(config)
    assert "6/6" in capsys.readouterr().err
    backbone = load_backbone("pixart", config.teacher)
    cache = encoded(config, backbone, PROMPTS)
    chosen = [5, 0, 3, 3]
    read, expected = cache.batch(chosen), backbone.encode([PROMPTS[index] for index in chosen])
    assert read.embeddings.dtype == torch.float32 and read.embeddings.shape == (4, 120, 12)
    assert torch.equal(read.mask, expected.mask) and read.mask.sum(1).tolist() == [10, 4, 4, 4]
    wanted = (expected.embeddings * expected.mask[..., None]).bfloat16().float()
    torch.testing.assert_close(read.embeddings, wanted, atol=1e-2, rtol=1e-2)  # of another batch: rounded otherwise
    assert (read.embeddings == 0).all(-1).equal(read.mask == 0)
    with safe_open(folder / "shard-00000.safetensors", "pt") as file:
        assert file.get_slice("embeddings").get_shape() == [4 + 6, 12]
        assert file.get_slice("embeddings").get_dtype() == "BF16"
        assert file.get_tensor("offsets").tolist() == [0, 4, 10]
    null = backbone.encode([""])
    assert torch.equal(cache.null.mask, null.mask) and cache.nulls(3).embeddings.shape == (3, 120, 12)
    assert torch.equal(cache.texts(["blue", "red"]).embeddings[0], cache.batch([2]).embeddings[0])
    with pytest.raises(UserError, match="does not hold `green`"):
        cache.texts(["green"])


def test_clip_keeps_its_padding_and_has_no_mask(teacher, tmp_path):
    config = configured(tmp_path, teacher=str(teacher))
    encode_config(config)
    backbone = load_backbone("stable_diffusion", str(teacher))
    read = encoded(config, backbone, PROMPTS).batch([1, 4])
    expected = backbone.encode([PROMPTS[1], PROMPTS[4]])
    assert read.mask is None and read.embeddings.shape == (2, 77, 32)
    torch.testing.assert_close(read.embeddings, expected.embeddings, atol=1e-2, rtol=1e-2)


def test_pooled_vectors_are_kept_and_every_text_encoder_counts(sd3, tmp_path):
    """Stable Diffusion 3 has three text encoders and a vector a prompt beside its tokens."""
    config = configured(tmp_path, backbone="stable_diffusion3", teacher=str(sd3))
    encode_config(config)
    backbone = load_backbone("stable_diffusion3", str(sd3))
    read = encoded(config, backbone, PROMPTS).batch([1, 4, 1])
    expected = backbone.encode([PROMPTS[1], PROMPTS[4], PROMPTS[1]])
    assert read.mask is None and read.embeddings.shape == (3, 154, 20) and read.pooled.shape == (3, 15)
    torch.testing.assert_close(read.embeddings, expected.embeddings, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(read.pooled, expected.pooled, atol=1e-2, rtol=1e-2)
    other = shutil.copytree(sd3, tmp_path / "other")
    weights = load_file(other / "text_encoder_2/model.safetensors")
    save_file({key: 1.1 * weight for key, weight in weights.items()}, other / "text_encoder_2/model.safetensors")
    with pytest.raises(UserError, match="other prompts or another text encoder"):
        encoded(config, load_backbone("stable_diffusion3", str(other)), PROMPTS)


def test_an_interrupted_encoding_goes_on_and_gives_the_same_files(config, monkeypatch, tmp_path):
    folder, written, real = tmp_path / "encoded", [], encode._write

    def killed(path, texts):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, texts)

    monkeypatch.setattr(encode, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_config(config)
    assert len(list(folder.glob("shard-*"))) == 1
    backbone = load_backbone("pixart", config.teacher)
    with pytest.raises(UserError, match=r"not complete: 2 of 4 files are missing; run `python -m training encode`"):
        encoded(config, backbone, PROMPTS)
    before = (folder / "shard-00000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(encode, "_write", lambda path, texts: written.append(path.name) or real(path, texts))
    encode_config(config)
    assert written[2:] == ["shard-00001.safetensors", "shard-00002.safetensors"]
    assert (folder / "shard-00000.safetensors").stat().st_mtime_ns == before
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    encode_config(config, resume=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_stale_cache_is_refused_by_writer_and_reader(config, tmp_path, pixart):
    encode_config(config)
    backbone = load_backbone("pixart", config.teacher)
    other = configured(tmp_path, [*PROMPTS[:-1], "a pet"], backbone="pixart", teacher=str(pixart))
    with pytest.raises(UserError, match="embeddings of other prompts .*prompts_sha256 was .* and is"):
        encode_config(other)
    with pytest.raises(UserError, match="prompts_sha256 was"):
        encoded(other, backbone, [*PROMPTS[:-1], "a pet"])
    copied = shutil.copytree(pixart, tmp_path / "copied")
    encoded(config, load_backbone("pixart", str(copied)), PROMPTS)  # the same text encoder at another place
    weights = copied / "text_encoder" / "model.safetensors"
    save_file({name: 1.01 * weight for name, weight in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(UserError, match="another text encoder .*text_encoder_sha256 was"):
        encoded(config, load_backbone("pixart", str(copied)), PROMPTS)
    more = configured(tmp_path, backbone="pixart", teacher=str(pixart), sample_prompts=["a circle"])
    with pytest.raises(UserError, match="not complete: 1 of 4"):
        encoded(more, backbone, PROMPTS)
    encode_config(more)  # adds the new sample prompts alone
    encoded(more, backbone, PROMPTS)


def test_what_is_damaged_or_missing_is_one_sentence(config, tmp_path, monkeypatch, pixart):
    with pytest.raises(UserError, match="encoded_prompts is not set"):
        encode_config(parse({"teacher": str(pixart), "prompts": "p.txt", "output": "run"}))
    backbone = load_backbone("pixart", config.teacher)
    with pytest.raises(UserError, match="holds no encoded prompts .*make them with"):
        encoded(config, backbone, PROMPTS)
    folder = encode_config(config)
    (folder / "shard-00001.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="shard-00001.safetensors: .*; delete the file"):
        encoded(config, backbone, PROMPTS).batch([2])
    (folder / "index.json").write_text(json.dumps([]))
    with pytest.raises(UserError, match="holds no encoded prompts"):
        encoded(config, backbone, PROMPTS)
    monkeypatch.setattr(encode.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match="needs about .* more and its disk has 0.0"):
        encode_config(config, resume=False)
