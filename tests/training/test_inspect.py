"""`inspect` on files as they are made here and elsewhere, and on files made to do harm."""

import io
import json
import pickle
import struct
import sys

import pytest
import safetensors.torch
import torch
from test_export import make_run

from training.__main__ import main
from training.errors import UserError
from training.export import export
from training.export.inspect import describe


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", teacher, start={"timestep": 625, "noise": "vp"})


def test_an_exported_checkpoint_says_how_to_sample_it(run, teacher, tmp_path):
    path = tmp_path / "student.safetensors"
    export(run, path, half=True, check="diffusers")
    told = describe(path)
    for line in (
        "layout      whole checkpoint (ComfyUI's Load Checkpoint, diffusers)",
        "family      a UNet (attends to text 32 wide)",
        "dtype       F16 100%, F32 under 1%",
        "sampling    one step from timestep 625, CFG 1; the network receives the noise times sigma of that",
        "a stock KSampler, 1 step, CFG 1, starts elsewhere",
        f"training    PG-SB, kappa 0.5 to 4.0, from {teacher.name}",
        "metadata    modelspec.architecture: stable-diffusion-v1",
    ):
        assert line in told
    with safetensors.safe_open(path, "pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
        tensors = len(file.keys())
    assert f"parameters  {count / 1e6:.4g} million in {tensors} tensors" in told


ONE, TEXT = (1,), "x.attn2.to_k.weight"


@pytest.mark.parametrize(
    "tensors, told",
    [
        (
            {"lora_unet_a.lora_up.weight": (8, 4), "lora_unet_a.lora_down.weight": (4, 8)},
            ("LoRA, kohya", "rank        4"),
        ),
        ({"x.a.lora_A.weight": (2, 8), "x.a.lora_B.weight": (8, 2)}, ("LoRA, peft's names", "rank        2")),
        ({"input_blocks.0.0.weight": ONE, TEXT: (1, 1024)}, ("UNet, original", "Stable Diffusion 2.x")),
        ({"down_blocks.0.resnets.0.x": ONE, TEXT: (1, 768)}, ("UNet, diffusers'", "Stable Diffusion 1.x")),
        ({"adaln_single.linear.weight": ONE, "caption_projection.linear_1.weight": ONE}, ("diffusers' names", "Sigma")),
        (
            {"t_block.1.weight": ONE, "y_embedder.y_proj.fc1.weight": ONE, "csize_embedder.x": ONE},
            ("original", "alpha"),
        ),
        ({"what.ever": (3,)}, ("not known; a tensor is what.ever", "parameters  3 in 1 tensors")),
        ({}, ("not known", "parameters  0 in 0 tensors")),
    ],
)
def test_layouts_and_families(tmp_path, tensors, told):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    found = describe(path)
    assert all(part in found for part in (*told, "metadata    none")), found


def test_folders(run, teacher, pixart):
    told = describe(teacher)
    assert "layout      diffusers folder" in told and "scheduler         predicts epsilon, scaled_linear" in told
    assert "unet              UNet2DConditionModel; " in told and "F32 100%" in told
    assert "PixArtTransformer2DModel" in describe(pixart)
    told = describe(run)
    assert "layout      run of this trainer" in told and "checkpoint  step-00000005" in told
    checkpoint = run / "checkpoints" / "step-00000005"
    told = describe(checkpoint)
    assert "checkpoint of this trainer, step 5" in told and "sampling    one step from timestep 625, vp noise" in told
    assert "student           " in told and "tensors, F32 100%" in told
    assert "CLIPTextModel" in describe(teacher / "text_encoder")


def test_a_cut_checkpoint_is_told(teacher, tmp_path):
    checkpoint = make_run(tmp_path / "run", teacher) / "checkpoints" / "step-00000005"
    (checkpoint / "ema.safetensors").write_bytes(b"cut")
    assert "ema               missing or cut short" in describe(checkpoint)


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_pickles_by_the_safe_reader_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"input_blocks.0.0.weight": torch.zeros(2, 3, dtype=torch.half)}}, tmp_path / "a.ckpt")
    told = describe(tmp_path / "a.ckpt")
    assert "UNet, original names" in told and "parameters  6 in 1 tensors" in told and "dtype       F16 100%" in told
    torch.save({"a": Harmful()}, tmp_path / "b.pt")
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "d.bin").write_bytes((tmp_path / "a.ckpt").read_bytes()[:100])
    for name in ("b.pt", "c.pth", "d.bin"):
        with pytest.raises(UserError, match="pickle that PyTorch's safe reader refuses .*safetensors") as refused:
            describe(tmp_path / name)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "harm").exists()
    torch.save({"step": 3}, tmp_path / "e.pt")
    with pytest.raises(UserError, match="holds no tensors by name"):
        describe(tmp_path / "e.pt")


def header(content: object) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        header(b"{" * 5000),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}) + bytes(4),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}) + bytes(8),
    ],
)
def test_damaged_and_hostile_safetensors_are_a_sentence(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="x.safetensors: .*; the file is cut short or damaged") as refused:
        describe(tmp_path / "x.safetensors")
    assert "\n" not in str(refused.value)


def test_what_a_file_says_of_itself_cannot_forge_lines(tmp_path):
    path = tmp_path / "x.safetensors"
    said = {"modelspec.title": "a\nlayout      trusted\x1b[31m", "snoopi.start_timestep": "1\n2", "long": "x" * 10_000}
    safetensors.torch.save_file({"evil\nname": torch.zeros(1)}, path, said)
    told = describe(path)
    assert "\x1b" not in told and max(map(len, told.splitlines())) < 400
    assert sum(line.startswith("layout") for line in told.splitlines()) == 1


def test_no_weights_are_read(tmp_path):
    path = tmp_path / "big.safetensors"
    text = json.dumps({"a": {"dtype": "F16", "shape": [2**30], "data_offsets": [0, 2**31]}}).encode()
    with path.open("wb") as file:  # two gigabytes that take no room
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2**31)
    assert "parameters  1.074 billion in 1 tensors" in describe(path)


def test_what_is_no_model(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("[")
    for path, sentence in (
        (tmp_path / "none", "There is nothing at"),
        (tmp_path / "a.png", "is no model file; known are .safetensors"),
        (tmp_path, "Cannot read .*config.json"),
        (tmp_path / "unet", "Cannot read .*config.json"),
    ):
        with pytest.raises(UserError, match=sentence):
            describe(path)


@pytest.mark.parametrize("files", [5, [], "x", None, {"../../config.yaml": 3}, {"student.safetensors": "x"}], ids=str)
def test_a_checkpoint_whose_state_is_odd_is_described_all_the_same(run, tmp_path, files):
    folder = tmp_path / "step-00000005"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"step": 5, "files": files}))
    told = describe(folder)
    assert "checkpoint of this trainer, step 5" in told
    assert ("missing or cut short" in told) == (isinstance(files, dict))


def test_a_console_that_knows_few_letters_shows_every_sentence(tmp_path, monkeypatch):
    """cp1252, as on Windows: nothing raises where a sentence or a path has an emoji."""
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, "cp1252"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(kept, "cp1252", errors="backslashreplace"))
    assert main(["inspect", str(tmp_path / "\U0001f600.safetensors")]) == 2
    folder = tmp_path / "\U0001f600"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    assert main(["inspect", str(folder)]) == 0
    sys.stdout.flush(), sys.stderr.flush()
    assert kept.getvalue().count(rb"\U0001f600") == 2
