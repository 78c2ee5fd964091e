"""A run with far fewer prompts than samples is warned of, by the dry run and by the run."""

import pytest

from training.distill import distill
from training.prompts.repeats import LISTS, TOO_OFTEN, few_prompts, few_prompts_before_a_run
from training.recipe import config
from training.recipe.config import parse
from training.run.plan import report


@pytest.mark.parametrize("name", ["sd15", "sd21", "pixart"])
def test_the_shipped_twelve_prompts_are_told_by_the_dry_run(name):
    loaded = config.load(f"training/configs/{name}.yaml")
    *_, told = report(loaded).splitlines()
    samples = loaded.steps * loaded.batch_size
    assert told.startswith(f"warning: training/configs/prompts.txt holds 12 prompts for a run of {samples:,} samples")
    assert "DiffusionDB" in told and "training/README.md" in told and len(told) < 600


def test_the_shipped_ten_negatives_are_told_too():
    told = report(config.load("training/configs/ablations/nasa_t.yaml"))
    *_, prompts, negatives = told.splitlines()
    assert "prompts.txt holds 12 prompts" in prompts
    assert "negative_prompts.txt holds 10 prompts" in negatives and "negopt_full" in negatives


def test_a_run_tells_it_before_it_trains(settings, capsys):
    long = parse(settings | {"steps": 10**6, "warm_start": None})
    with pytest.raises(KeyboardInterrupt):
        distill(long, stop=lambda: True)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "holds 5 prompts for a run of 2,000,002 samples, which sees each 400,000 times" in told[0]


def test_enough_prompts_are_no_matter(settings, capsys):
    """The bound, and the paper's own numbers: 60,000 steps of 64 over 1.4 million; 10,000 negatives."""
    plain = {"teacher": "x/y", "prompts": "p.txt", "output": "r", "batch_size": 1}
    for count, settings_of_run, few in (
        (3, {"steps": 3 * TOO_OFTEN}, False),
        (3, {"steps": 3 * (TOO_OFTEN + 1)}, True),
        (1_400_000, {"batch_size": 64}, False),
        (10_000, {"batch_size": 32, "steps": 50_000}, False),
    ):
        told = few_prompts("p.txt", count, parse(plain | settings_of_run).samples, LISTS)
        assert bool(told) is few
    distill(parse(settings | {"steps": 1, "warm_start": None}))
    assert "warning: " not in capsys.readouterr().err


def test_a_list_on_the_hub_is_not_fetched_for_a_dry_run(monkeypatch):
    monkeypatch.setattr("training.prompts.read.snapshot", lambda *_: pytest.fail("asked the hub"))
    assert few_prompts_before_a_run("datasets://a/b", 10**9, LISTS) is None
