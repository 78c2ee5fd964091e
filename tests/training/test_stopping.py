"""Ctrl-C before the first step: while the teacher's samples are made, and while prompts are encoded."""

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from training.__main__ import main
from training.commands.encode import encode_config
from training.distill import distill
from training.method import warm_start
from training.prompts import embeddings, encode
from training.recipe.config import parse
from training.run import progress
from training.run.checkpoint import load_newest


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(warm_start, "SHARD", 4)
    monkeypatch.setattr(encode, "SHARD", 2)
    monkeypatch.setattr(encode, "BATCH", 2)
    monkeypatch.setattr(embeddings, "CHUNK", 2)


@pytest.fixture
def signals_as_before():
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


def press_once(monkeypatch, module, name: str, call: int) -> None:
    """A real SIGINT to this process in the `call`th call of module.name."""
    real, calls = getattr(module, name), []

    def pressed(*arguments, **named):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, pressed)


def shards(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "warm_start").iterdir())


def test_ctrl_c_while_pairs_are_made_keeps_the_shard_and_says_so(settings, tmp_path, monkeypatch, signals_as_before):
    settings |= {"warm_start": {"steps": 1, "pairs": 14, "sampler_steps": 2}, "steps": 1}
    with monkeypatch.context() as patch:
        press_once(patch, warm_start, "ddim_sample", 2)
        with pytest.raises(KeyboardInterrupt, match="8 of 14 are kept, go on with --resume"):
            distill(parse(settings), stop=progress.StopSignal())
    run = tmp_path / "run"
    assert shards(run) == ["pairs-000000.safetensors", "pairs-000001.safetensors"]
    kept = [(run / "warm_start" / name).stat().st_mtime_ns for name in shards(run)]
    distill(parse(settings), resume=True)
    assert len(shards(run)) == 4
    assert [(run / "warm_start" / name).stat().st_mtime_ns for name in shards(run)[:2]] == kept
    distill(parse(settings | {"output": str(tmp_path / "whole")}))
    one, other = load_newest(run).weights["student"], load_newest(tmp_path / "whole").weights["student"]
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_ctrl_c_in_the_last_shard_of_pairs_saves_the_first_step(settings, tmp_path, monkeypatch, signals_as_before):
    settings |= {"warm_start": {"steps": 3, "pairs": 8, "sampler_steps": 2}}
    press_once(monkeypatch, warm_start, "ddim_sample", 2)
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 1, all saved; go on with --resume"):
        distill(parse(settings), stop=progress.StopSignal())
    assert load_newest(tmp_path / "run").state["step"] == 1


def test_ctrl_c_while_a_run_encodes_its_prompts_loses_nothing_and_leaves_nothing(settings, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="Stopped while prompts were encoded, before any step; nothing is lost"):
        distill(parse(settings), stop=lambda: True)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_of_the_command_encode_keeps_the_shard_and_the_same_command_goes_on(
    settings, tmp_path, monkeypatch, capsys, signals_as_before
):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings | {"encoded_prompts": str(tmp_path / "encoded")}))
    with monkeypatch.context() as patch:
        press_once(patch, encode, "_write", 2)  # the first writes null and sample prompts
        assert main(["encode", str(config)]) == 130
    told = capsys.readouterr().err
    assert "Stopped; 2 of 5 prompts are encoded and kept, the same command goes on." in told
    assert "Traceback" not in told and "Stopping as soon as what is in hand is saved" in told
    first = tmp_path / "encoded" / "shard-00000.safetensors"
    before = first.stat().st_mtime_ns
    assert not (tmp_path / "encoded" / ".lock").exists()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main(["encode", str(config)]) == 0
    assert first.stat().st_mtime_ns == before and len(list((tmp_path / "encoded").glob("shard-*"))) == 3
    encode_config(parse(settings | {"encoded_prompts": str(tmp_path / "encoded")}))


def test_a_second_ctrl_c_stops_at_once(signals_as_before, capsys):
    stop = progress.StopSignal()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop() and "once more to stop at once" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
