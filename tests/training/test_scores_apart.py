"""A kappa range and a t range of the LoRA teacher's own: what they do, and what stays as it was without them. The
objective by hand is test_anchor.py's."""

from pathlib import Path

import pytest
import torch
from same_bits import same_bits

from training.distill import distill, latest_timesteps
from training.errors import UserError
from training.method.guidance import Guidance, unequal_scales
from training.recipe.config import parse
from training.run.checkpoint import load_newest


def drawn(**settings):
    guidance = Guidance((0.5, 4.0), "sample", settings.pop("on", "both"), 1.0, **settings)
    pair = guidance.draw(torch.Generator().manual_seed(0), 500)
    return guidance.scales(pair, slice(0, 500), torch.device("cpu"))


def test_without_a_range_of_its_own_the_lora_teacher_gets_the_same_scale():
    teacher, lora = drawn()
    assert torch.equal(teacher, lora)


def test_each_score_has_its_kappa_from_its_own_range():
    teacher, lora = drawn(of_lora=(5.0, 6.0))
    assert torch.equal(teacher, drawn()[0])
    assert 0.5 <= teacher.min() < 0.6 and 3.9 < teacher.max() <= 4 and 5 <= lora.min() < 5.1 and 5.9 < lora.max() <= 6
    assert abs(torch.corrcoef(torch.stack([teacher.flatten(), lora.flatten()]))[0, 1]) < 0.2
    assert drawn(of_lora=(5.0, 6.0), on="lora")[0] == 1.0  # the teacher's is fixed then


@pytest.mark.parametrize("cfg_on", ["teacher", "none"])
def test_a_range_that_nothing_uses_is_one_sentence(settings, cfg_on):
    with pytest.raises(UserError, match=f"kappa_lora is .* cfg_on {cfg_on} the LoRA teacher gets fixed_kappa; leave"):
        parse(settings | {"cfg_on": cfg_on, "kappa_lora": [1, 2]})


@pytest.mark.parametrize("change, sentence", [
    ({"kappa_lora": [2, 1]}, r"kappa_lora is \[2, 1\]; write the smaller number first"),
    ({"kappa_lora": 2}, "kappa_lora is 2; allowed is a list of 2 numbers from 0 to 100, or null"),
    ({"vsd": {"timesteps_lora": [500, 1000]}}, "vsd.timesteps_lora is .*; allowed is a list of 2 whole numbers"),
])  # fmt: skip
def test_a_range_that_is_none_is_one_sentence(settings, change, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(settings | change)


def test_other_means_of_the_two_scales_are_warned_of():
    assert "the mean of kappa is 2.25 and that of kappa_lora 1.25" in unequal_scales("both", (0.5, 4), 1.0, (0.5, 2))
    assert unequal_scales("both", (0.5, 4), 1.0, (2, 2.5)) is None
    assert unequal_scales("lora", (0.5, 4), 1.25, (0.5, 2)) is None  # the fixed one is at the mean of what is drawn


def test_the_last_timestep_of_either_range_is_asked_of_the_schedule(settings):
    config = parse(settings | {"vsd": {"timesteps": [20, 400], "timesteps_lora": [20, 900]}})
    assert latest_timesteps(config, 999)["vsd.timesteps_lora"] == 900
    assert latest_timesteps(parse(settings), 999)["vsd.timesteps_lora"] == 980


def test_one_range_for_both_is_the_default_bit_for_bit_and_at_one_t_both_formulas_agree(settings):
    """Ranges of a single value: written for both scores or for one, the same student but for rounding."""
    one = {"steps": 1, "warm_start": None, "kappa": [2, 2], "vsd": {"timesteps": [500, 500]}, "sample_every": 100}

    def trained(name, **changes):
        output = {"output": f"{settings['output']}-{name}"}
        distill(parse(settings | one | output | changes))
        return load_newest(Path(output["output"]))

    plain = trained("plain")
    named = trained("named", kappa_lora=None, vsd=one["vsd"] | {"timesteps_lora": None})
    same_bits(plain.weights, named.weights)
    apart = trained("apart", vsd=one["vsd"] | {"timesteps_lora": [500, 500]})
    for index, state in plain.optimizers["student"]["state"].items():
        found = apart.optimizers["student"]["state"][index]["exp_avg"]
        torch.testing.assert_close(found, state["exp_avg"], rtol=1e-3, atol=1e-6)
