"""`merge`: the weighted mean of students, and what has none. Small random models; the last one in a real ComfyUI."""

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel

from training.__main__ import main
from training.errors import UserError
from training.export import export
from training.export.merge import merge
from training.export.stable_diffusion import UNET, unet_state
from training.networks.adapter import adapter_state, add_adapter
from training.recipe.config import parse
from training.run.checkpoint import Checkpoint, save
from training.run.folder import write_config


def make_run(folder: Path, teacher: Path, factor: float, lora: int = 0, **settings) -> Path:
    """A run folder as distill leaves it: the teacher times `factor`, or a random LoRA of that rank."""
    values = {"teacher": str(teacher), "prompts": "p.txt", "output": str(folder)} | settings
    if lora:
        values["student"] = {"lora": {"rank": lora, "alpha": 2 * lora}}
    config = parse(values)
    write_config(folder, config)
    unet = UNet2DConditionModel.from_pretrained(teacher / "unet")
    state = {key: value * factor for key, value in unet.state_dict().items()}
    if lora:
        torch.manual_seed(lora)
        state = {
            key: torch.randn_like(value) / 9
            for key, value in adapter_state(add_adapter(unet, config.student.lora)).items()
        }
    save(folder, Checkpoint({"student": state}, {}, {"step": 5, "bad_steps": 0}), 1)
    return folder


@pytest.fixture(scope="module")
def files(teacher, tmp_path_factory) -> Path:
    """a, b: checkpoints of two students of one teacher; p, q: LoRAs of rank 2 and 3; u: a's UNet alone; r: a's run."""
    folder = tmp_path_factory.mktemp("students")
    told = {"check": "diffusers", "card": False}
    start = {"start": {"timestep": 625, "noise": "vp"}}
    export(make_run(folder / "r", teacher, 1.01, **start), folder / "a.safetensors", **told)
    export(make_run(folder / "s", teacher, 0.97, kappa=[1, 2], **start), folder / "b.safetensors", **told)
    export(folder / "r", folder / "u.safetensors", "unet", **told)
    export(folder / "r", folder / "h.safetensors", half=True, **told)
    export(make_run(folder / "late", teacher, 1.0), folder / "late.safetensors", **told)
    for name, rank in (("p", 2), ("q", 3)):
        export(make_run(folder / f"run-{name}", teacher, 1, lora=rank, **start), folder / f"{name}.safetensors", **told)
    return folder


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safetensors.safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def test_the_mean_of_two_students_is_theirs_tensor_by_tensor_and_says_so(files, tmp_path, capsys):
    output = tmp_path / "mean.safetensors"
    command = ["merge", str(files / "a.safetensors"), str(files / "b.safetensors"), "--weights", ".25", ".75"]
    assert main([*command, "--output", str(output), "--title", "Two"]) == 0
    (a, of_a), (b, of_b), (mean, told) = (
        read(path) for path in (files / "a.safetensors", files / "b.safetensors", output)
    )
    assert mean.keys() == a.keys()
    for key, tensor in mean.items():
        assert torch.equal(tensor, 0.25 * a[key] + 0.75 * b[key] if key.startswith(UNET) else a[key]), key
        assert tensor.dtype == a[key].dtype
    record = json.loads(told["snoopi.merged"])
    assert [(part["file"], part["weight"], part["metadata"]) for part in record] == [
        ("a.safetensors", 0.25, of_a),
        ("b.safetensors", 0.75, of_b),
    ]
    same = ("start_timestep", "start_noise", "prediction", "preset", "backbone", "format", "base_model")
    assert all(told[f"snoopi.{key}"] == of_a[f"snoopi.{key}"] for key in same)
    assert "snoopi.kappa_min" not in told  # they differ
    assert told["modelspec.title"] == "Two" and told["modelspec.hash_sha256"] not in (
        of_a["modelspec.hash_sha256"],
        "0x" + "0" * 64,
    )
    card = (tmp_path / "README.md").read_text()
    assert "0.25 of a.safetensors" in card and "one step from timestep 625" in card and "# Two" in card
    capsys.readouterr()
    assert main(["inspect", str(output)]) == 0
    assert "merged      0.75 of b.safetensors" in capsys.readouterr().out


def test_run_folders_are_exported_first_and_weights_may_be_left_out(files, tmp_path):
    output = tmp_path / "mean.safetensors"
    merge([str(files / "r"), str(files / "s"), str(files / "r/checkpoints/step-00000005")], output, layout="unet")
    (a, _), (b, _), (mean, told) = (read(path) for path in (files / "a.safetensors", files / "b.safetensors", output))
    for key, tensor in mean.items():
        torch.testing.assert_close(tensor, (2 * a[key] + b[key]) / 3)
    assert [part["file"] for part in json.loads(told["snoopi.merged"])] == ["r", "s", "step-00000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "mean.safetensors"]


def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """{layer: what a kohya LoRA adds to its weight}."""
    layers = {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")}
    return {
        layer: (state[f"{layer}.lora_up.weight"] @ state[f"{layer}.lora_down.weight"])
        * (state[f"{layer}.alpha"] / len(state[f"{layer}.lora_down.weight"]))
        for layer in layers
    }


def test_the_mean_of_loras_changes_what_the_mean_of_their_changes_is(files, tmp_path):
    """Not the mean of the matrices, whose product is another; ranks may differ and add up."""
    merge([str(files / "p.safetensors"), str(files / "q.safetensors")], tmp_path / "m.safetensors", [0.3, 0.7])
    p, q, mean = (
        change(read(path)[0]) for path in (files / "p.safetensors", files / "q.safetensors", tmp_path / "m.safetensors")
    )
    assert mean.keys() == p.keys() and len(mean) > 3
    for layer, delta in mean.items():
        torch.testing.assert_close(delta, 0.3 * p[layer] + 0.7 * q[layer])
    down = next(tensor for key, tensor in read(tmp_path / "m.safetensors")[0].items() if "lora_down" in key)
    assert len(down) == 5


def altered(source: Path, target: Path, tensors=lambda state: state, **metadata) -> Path:
    state, told = read(source)
    safetensors.torch.save_file(
        tensors(state), target, told | {f"snoopi.{key}": value for key, value in metadata.items()}
    )
    return target


def nan(state):
    name = next(name for name in state if name.startswith(UNET))
    state[name].view(-1)[0] = float("nan")
    return state


def other_text(state):
    name = next(name for name in state if name.startswith("cond_stage_model"))
    return state | {name: state[name] + 1}


def sdxl_names(state):
    return {key: torch.zeros(8, 2048) if key.endswith("attn2.to_k.weight") else value for key, value in state.items()}


def lost(state):
    return dict(list(state.items())[1:])


REFUSED = {
    "NaN": (["a", nan], r"holds NaN or infinite numbers in model.diffusion_model"),
    "another family": (["a", sdxl_names], "of two families: a UNet .*; and SDXL"),
    "a LoRA and whole weights": (["a", "p"], "of two kinds: whole checkpoint .*; and LoRA"),
    "a UNet and a checkpoint": (["a", "u"], "of two kinds: whole checkpoint .*; and UNet"),
    "other timesteps": (["a", "late"], "no mean: snoopi.start_(noise|timestep) is `(vp|625)` and `(unit|999)`"),
    "another prediction": (["a", {"prediction": "v_prediction"}], "snoopi.prediction is `epsilon` and `v_prediction`"),
    "steps listed by one": (["a", {"timesteps": "999,749"}], "snoopi.timesteps is not told and `999,749`"),
    "halves and wholes": (["a", "h"], "no mean: .* is F32 .* and F16"),
    "a tensor lost": (["a", lost], "no mean: only one has"),
    "another text encoder": (["a", other_text], "which no student trains"),
    "one": (["a"], "One file has no mean"),
    "no file": (["a", "none.safetensors"], "Cannot read none.safetensors|No such file"),
    "no model": (["a", "a.txt"], "neither a run folder nor a .safetensors file"),
    "no run": (["a", "."], "is no run"),
    "damaged": (["a", "cut.safetensors"], "Cannot read .*cut.safetensors"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_has_no_mean_is_one_sentence_and_leaves_nothing(files, tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("")
    Path("cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    names, told = REFUSED[fault]
    sources = []
    for name in names:
        if callable(name) or isinstance(name, dict):
            given = {"tensors": name} if callable(name) else name
            sources.append(str(altered(files / "a.safetensors", tmp_path / "odd.safetensors", **given)))
        else:
            sources.append(str(path) if (path := files / f"{name}.safetensors").exists() else name)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=told):
        merge(sources, tmp_path / "m.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "weights, told",
    [
        ((".5", ".6"), "--weights 0.5 0.6: they sum to 1.1; give numbers from 0 to 1 that sum to 1"),
        ((".5",), "--weights has 1 numbers for 2 files"),
        (("nan", "1"), "nan is not a number from 0 to 1"),
        (("-.5", "1.5"), "-.5 is not a number from 0 to 1|expected at least one argument"),
        (("1e400", "0"), "1e400 is not a number from 0 to 1"),
    ],
)
def test_weights_that_are_no_mean_are_one_sentence(files, tmp_path, capsys, weights, told):
    command = ["merge", str(files / "a.safetensors"), str(files / "b.safetensors"), "--weights", *weights]
    try:
        code = main([*command, "--output", str(tmp_path / "m.safetensors")])
    except SystemExit as left:
        code = left.code
    import re

    assert code == 2 and re.search(told, capsys.readouterr().err.strip().splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_three_thirds_are_one(files, tmp_path):
    merge([str(files / "a.safetensors")] * 3, tmp_path / "m.safetensors", [0.333, 0.333, 0.333])
    mean, told = read(tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, mean[key]) for key, tensor in read(files / "a.safetensors")[0].items())
    assert sum(part["weight"] for part in json.loads(told["snoopi.merged"])) == pytest.approx(1)


def test_an_input_is_never_written_over(files):
    before = (files / "a.safetensors").read_bytes()
    with pytest.raises(UserError, match="one of the files to merge; give another name"):
        merge([str(files / "a.safetensors"), str(files / "b.safetensors")], files / "a.safetensors")
    assert (files / "a.safetensors").read_bytes() == before


def test_files_of_others_that_say_nothing_merge_too(teacher, tmp_path):
    state = unet_state(UNet2DConditionModel.from_pretrained(teacher / "unet").state_dict())
    for name, factor in (("one", 1.0), ("two", 2.0)):
        tensors = {key: value * factor for key, value in state.items()}
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
    merge([str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")], tmp_path / "m.safetensors")
    mean, told = read(tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, state[key] * 1.5) for key, tensor in mean.items())
    assert "snoopi.start_timestep" not in told
    assert "says nothing of itself: choose a preset" in (tmp_path / "README.md").read_text()
