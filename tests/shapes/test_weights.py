"""The committed demo weights: what the record says, and what happens to a damaged file."""

import json
import shutil

import pytest
import safetensors
import torch

from training.errors import UserError
from training.recipe import config
from training.shapes import weights

SIZE_LIMIT = 64 * 2**20


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(weights.FOLDER, tmp_path / "weights")


def test_committed_weights_are_small_half_precision_and_as_recorded():
    record = weights.read_record()
    assert sum((weights.FOLDER / name).stat().st_size for name in weights.PARTS) <= SIZE_LIMIT
    for name in weights.PARTS:
        tensors, described = weights.read_part(name)
        assert {tensor.dtype for tensor in tensors.values() if tensor.ndim} == {torch.float16}
        assert described["snoopi.start_timestep"] == str(record["start"]["timestep"])
        assert described["snoopi.start_noise"] == record["start"]["noise"]


def test_record_meets_the_bars():
    record = weights.read_record()
    assert record["pictures"] == 500
    assert record["teacher_accuracy"] >= 0.95
    assert record["student_accuracy"] >= 0.90
    assert max(record["student_colors"].values()) <= 0.60
    assert min(record["student_colors"].values()) >= 0.05


def test_the_recipe_is_still_what_the_weights_were_trained_with():
    """Whatever the trainer's defaults become; settings younger than the record are pinned to what was done before."""

    def same(recorded: dict, now: dict) -> bool:
        pairs = [(value, now[key]) for key, value in recorded.items()]
        return all(same(one, other) if isinstance(one, dict) else one == other for one, other in pairs)

    recipe = config.load(weights.CONFIG)
    assert same(weights.read_record()["distillation"], config.to_dict(recipe))
    assert (recipe.student.ema_ramp, recipe.lora.fresh_prompts) == (False, False)


@pytest.mark.parametrize("name", weights.PARTS)
def test_truncated_weights_get_a_sentence(copied, tmp_path, name):
    with (copied / name).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=f"{name}: it is not the file that the record describes; check out"):
        weights.write_checkpoint(tmp_path / "out.safetensors", folder=copied)
    assert not (tmp_path / "out.safetensors").exists()


def test_missing_weights_get_a_sentence(copied, tmp_path):
    (copied / "unet.safetensors").unlink()
    with pytest.raises(UserError, match="unet.safetensors.*No such file.*make demo-model"):
        weights.write_checkpoint(tmp_path / "out.safetensors", folder=copied)


def test_missing_record_gets_a_sentence(copied):
    (copied / "record.json").write_text("{")
    with pytest.raises(UserError, match="record.json.*make demo-model"):
        weights.read_record(copied)


def test_commit_splits_an_exported_file_and_the_checkpoint_puts_it_together(tmp_path):
    exported = weights.write_checkpoint(tmp_path / "exported.safetensors", untrained=True)
    weights.commit(exported, {"start": {"timestep": 625, "noise": "vp"}}, tmp_path / "parts")
    again = weights.write_checkpoint(tmp_path / "again.safetensors", folder=tmp_path / "parts")
    with safetensors.safe_open(exported, "pt") as first, safetensors.safe_open(again, "pt") as second:
        assert sorted(first.keys()) == sorted(second.keys())
        assert all(torch.equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys())  # noqa: SIM118
        assert first.metadata() == second.metadata()
    assert json.loads((tmp_path / "parts" / "record.json").read_text())["sha256"].keys() == weights.PARTS.keys()
