"""Trackers across a resume: wandb goes on with its run, by an id in the run folder; tensorboard by its folder."""

from pathlib import Path

import pytest
from accelerate import Accelerator

from training.distill import distill
from training.errors import UserError
from training.recipe.config import parse
from training.run.progress import WANDB, Metrics


@pytest.fixture
def short(settings) -> dict:
    return settings | {"warm_start": None, "steps": 1, "lora": {"rank": 2}, "sample_every": 9}


def asked_of_wandb(run: Path, monkeypatch) -> dict:
    """What its tracker is started with."""
    accelerator, asked = Accelerator(cpu=True), []
    monkeypatch.setattr(accelerator, "init_trackers", lambda name, config, init_kwargs: asked.append(init_kwargs))
    Metrics(run, 0, accelerator, "wandb", {"seed": 1})
    return asked[0]["wandb"]


def test_wandb_is_asked_for_the_same_run_again_by_an_id_in_the_run_folder(tmp_path, monkeypatch):
    first = asked_of_wandb(tmp_path, monkeypatch)
    assert first["resume"] == "allow" and len(first["id"]) == 8
    assert (tmp_path / WANDB).read_text() == first["id"] + "\n"
    assert asked_of_wandb(tmp_path, monkeypatch) == first
    (tmp_path / "other").mkdir()
    assert asked_of_wandb(tmp_path / "other", monkeypatch) != first


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a/b", b"x" * 1000, b"two\nlines"])
def test_a_damaged_id_is_made_anew(tmp_path, monkeypatch, content):
    (tmp_path / WANDB).write_bytes(content)
    made = asked_of_wandb(tmp_path, monkeypatch)["id"]
    assert len(made) == 8 and (tmp_path / WANDB).read_text() == made + "\n"


def test_a_tracker_that_does_not_start_is_a_sentence(tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)

    def refuse(*_, **__):
        raise ValueError("api_key not configured (no-tty)")

    monkeypatch.setattr(accelerator, "init_trackers", refuse)
    with pytest.raises(UserError, match=r"tracker is wandb, which does not start \(api_key .*write `tracker: null`"):
        Metrics(tmp_path, 0, accelerator, "wandb", {})


def test_tensorboard_goes_on_in_its_folder(short, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in (1, 2):
        distill(parse(short | {"tracker": "tensorboard", "steps": steps}), resume=steps == 2)
    events = reader.EventAccumulator(str(tmp_path / "run/snoopi"))
    events.Reload()
    assert [point.step for point in events.Scalars("lora_loss")] == [1, 2]
    assert not (tmp_path / "run" / WANDB).exists()


def test_wandb_goes_on_with_its_run(short, tmp_path, monkeypatch):
    """Off line, by the real wandb, where it is installed."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in (1, 2):
        distill(parse(short | {"tracker": "wandb", "steps": steps}), resume=steps == 2)
    kept = (tmp_path / "run" / WANDB).read_text().strip()
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) >= 1 and all(name.endswith(f"-{kept}") for name in folders), folders
