"""Learning rates: constant by default, warm-up, linear and cosine, bit-exact resume, a new rate on resume."""

import json
from pathlib import Path

import pytest
from same_bits import same_checkpoints

from training.distill import distill
from training.errors import UserError
from training.recipe.config import parse
from training.run.checkpoint import load, load_newest
from training.run.schedule import schedule
from training.run.trained import Trained


@pytest.fixture
def short(settings) -> dict:
    """LoRA, then VSD, without a warm start."""
    return settings | {"warm_start": None, "sample_every": 100, "keep_checkpoints": 9, "samples_per_prompt": 2}


def rates_of(run: Path, role: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[f"{role}_learning_rate"] for line in lines if f"{role}_learning_rate" in line]


def test_curves_begin_at_0_reach_the_rate_and_end_at_0():
    steps = range(5, 25)
    linear, cosine, flat = (schedule(kind, 4, steps) for kind in ("linear", "cosine", "constant"))
    for curve in (linear, cosine, flat):
        assert [curve(step) for step in (0, 4, 5, 6, 8, 9)] == [1, 1, 0, 0.25, 0.75, 1]
    assert [linear(17), linear(24), linear(25)] == [0.5, 1 / 16, 0]
    assert cosine(17) == pytest.approx(0.5) and 0 < cosine(24) < 0.01 and cosine(25) == 0
    assert {flat(step) for step in range(9, 99)} == {1}
    assert {schedule("constant", 0, steps)(step) for step in range(99)} == {1}


def test_a_constant_rate_trains_the_same_bits_as_no_schedule_at_all(settings, tmp_path, monkeypatch):
    """Through all three phases; without set_rates an optimiser keeps the rate that it was made with."""
    with_schedule = load(distill(parse(settings)))
    monkeypatch.setattr(Trained, "set_rates", lambda self, step: None)
    same_checkpoints(with_schedule, load(distill(parse(settings | {"output": str(tmp_path / "before")}))))


def test_schedules_of_both_networks_resume_bit_for_bit(short, tmp_path):
    short = short | {
        "steps": 6,
        "student": short["student"] | {"schedule": "cosine", "warmup_steps": 2},
        "lora": short["lora"] | {"schedule": "linear", "warmup_steps": 3},
    }
    whole = load(distill(parse(short)))
    asked = []
    parts = parse(short | {"output": str(tmp_path / "parts")})
    for stops_after in (1, 3):
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            distill(parts, resume=True, stop=lambda last=stops_after: asked.append(0) or len(asked) == last)
    same_checkpoints(whole, load(distill(parts, resume=True)))
    assert rates_of(tmp_path / "parts", "student") == rates_of(tmp_path / "run", "student")
    assert rates_of(tmp_path / "run", "student")[:3] == [0, 5e-5, 1e-4]  # counted from the first step of VSD
    assert rates_of(tmp_path / "run", "lora") == [0, 1e-3 / 3, 1e-3 * (2 / 3), 1e-3, 7.5e-4, 5e-4, 2.5e-4]


def test_a_resumed_run_may_have_a_lower_rate_which_is_told_and_used(short, tmp_path, capsys):
    distill(parse(short | {"steps": 2}))
    lower = short | {"student": short["student"] | {"learning_rate": 1e-6}}
    lower["lora"] = short["lora"] | {"learning_rate": 5e-4, "schedule": "linear"}
    distill(parse(lower), resume=True)
    told = capsys.readouterr().err
    assert "from step" in told, told
    assert "from step 4 on: student.learning_rate was 0.0001 and is 1e-06; lora.learning_rate was 0.001 and is" in told
    assert "lora.schedule was constant and is linear" in told
    assert rates_of(tmp_path / "run", "student") == [1e-4, 1e-4, 1e-6, 1e-6]
    assert load_newest(tmp_path / "run").optimizers["student"]["param_groups"][0]["lr"] == 1e-6
    distill(parse(lower | {"steps": 5}), resume=True)
    assert "learning_rate was" not in capsys.readouterr().err


def test_all_else_of_an_optimiser_stays_as_it_was_begun(short):
    distill(parse(short | {"steps": 1}))
    with pytest.raises(UserError, match=r"student.betas was \[0.9, 0.999\] and is \[0.0, 0.99\]. Set these back"):
        distill(parse(short | {"student": short["student"] | {"betas": [0, 0.99]}}), resume=True)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"student": {"warmup_steps": 5}}, "student.warmup_steps is 5; the student is trained for 4 steps, give fewer"),
        ({"lora": {"warmup_steps": 6, "initial_steps": 1}}, "lora.warmup_steps is 6; the lora is trained for 5 steps"),
        ({"lora": {"schedule": "square"}}, "lora.schedule is 'square'; allowed is one of constant, linear, cosine"),
        ({"student": {"warmup_steps": -1}}, "student.warmup_steps is -1; allowed is a whole number from 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_sentence(short, change, told):
    with pytest.raises(UserError, match=told):
        parse(short | change)
