"""Every method is settings of the one loop: what each changes, on both backbones. Random weights: wiring only."""

import json
import re
from pathlib import Path

import pytest
import torch

from training import distill
from training.commands.encode import encode_config
from training.errors import UserError
from training.method import clip as clip_of_training
from training.method import guidance, one_step, student_update
from training.method.losses import clamped_clip_loss
from training.networks.backbones import load_backbone
from training.networks.student import plain_student
from training.recipe import config
from training.recipe.config import parse
from training.run.checkpoint import load_newest
from training.run.folder import open_run
from training.run.plan import report

CONFIGS = Path(config.__file__).parents[1] / "configs"


@pytest.fixture
def short(settings):
    """Two VSD steps and nothing before."""
    return settings | {
        "steps": 2,
        "warm_start": None,
        "student": {"learning_rate": 1e-3},
        "lora": {"rank": 2, "alpha": 2, "initial_steps": 0},
    }


@pytest.fixture
def everything(short, pixart, clip, tmp_path):
    """All that a step can have, on PixArt: NASA-T, CLIP, a LoRA student, an average on the CPU, parts of a batch."""
    (tmp_path / "negatives.txt").write_text("ugly\nblurry\n")
    return short | {
        "backbone": "pixart",
        "teacher": str(pixart),
        "start": {"timestep": 400, "noise": "vp"},
        "batch_size": 4,
        "micro_batch": 2,
        "kappa_per": "sample",
        "gradient_checkpointing": True,
        "nasa": {"prompts": str(tmp_path / "negatives.txt")},
        "clip": {"model": str(clip), "decoder": None, "one_in": 2},
        "student": {"learning_rate": 1e-3, "lora": {"rank": 2}, "ema_decay": 0.9, "ema_device": "cpu"},
    }


def lines(settings: dict) -> list[dict]:
    return [json.loads(line) for line in Path(settings["output"], "metrics.jsonl").read_text().splitlines()]


def test_everything_at_once_resumes_to_the_same_bits(everything, tmp_path):
    distill.distill(parse(everything))
    whole = load_newest(tmp_path / "run")
    other = everything | {"output": str(tmp_path / "stopped")}
    with pytest.raises(KeyboardInterrupt):
        distill.distill(parse(other), stop=lambda: True)
    distill.distill(parse(other), resume=True)
    again = load_newest(tmp_path / "stopped")
    for role in ("student", "ema", "lora"):
        assert whole.weights[role].keys() == again.weights[role].keys()
        assert all(torch.equal(value, again.weights[role][key]) for key, value in whole.weights[role].items()), role
    assert all("lora_" in key for key in whole.weights["student"])
    assert any(not torch.equal(whole.weights["ema"][key], value) for key, value in whole.weights["student"].items())
    wanted = {"alpha", "kappa", "clip_loss", "vsd_loss", "lora_loss", "score_gap", "memory_gib", "x0_mean", "x0_std"}
    assert wanted <= lines(everything)[-1].keys()

    run = open_run(tmp_path / "run")
    backbone = load_backbone("pixart", everything["teacher"])
    merged = plain_student(backbone, run.config.student, run.weights(average=False))
    assert merged.state_dict().keys() == backbone.network.state_dict().keys()
    before = backbone.network.state_dict()
    changed = [key for key, value in merged.state_dict().items() if not torch.equal(value, before[key])]
    assert changed and all(".attn" in key for key in changed)


def test_nasa_t_steers_student_and_teacher_but_not_the_lora(everything, monkeypatch):
    """The frozen teacher's CFG goes away from the negative prompt, the LoRA teacher's from the null prompt."""
    seen, alphas = [], []

    def guided(predict, x_t, t, text, null, kappa):
        seen.append((predict.__name__, null.mask.sum(1).tolist()))
        return guidance.guided(predict, x_t, t, text, null, kappa)

    def arguments(network, negative, alpha, mask):
        alphas.append(alpha)
        assert mask.sum(1).tolist() == [2] * len(mask)  # a word and the end
        return real(network, negative, alpha, mask)

    real = one_step.nasa_arguments
    monkeypatch.setattr(student_update, "guided", guided)
    monkeypatch.setattr(one_step, "nasa_arguments", arguments)
    distill.distill(parse(everything))
    assert {where for name, where in ((name, tuple(null)) for name, null in seen) if name == "frozen"} == {(2, 2)}
    assert {tuple(null) for name, null in seen if name == "lora"} == {(1, 1)}
    assert len(set(alphas)) == 2 and all(0 <= alpha <= 1 for alpha in alphas)


@pytest.mark.parametrize(
    "cfg_on, fixed, expected",
    [("both", 1.0, (3, 3)), ("teacher", 4.5, (3, 4.5)), ("lora", 4.5, (4.5, 3)), ("none", 4.5, (4.5, 4.5))],
)
def test_the_four_cells_of_table_2(short, monkeypatch, cfg_on, fixed, expected):
    seen = {}

    def guided(predict, x_t, t, text, null, kappa):
        seen[predict.__name__] = float(kappa)
        return guidance.guided(predict, x_t, t, text, null, kappa)

    monkeypatch.setattr(student_update, "guided", guided)
    distill.distill(parse(short | {"kappa": [3, 3], "cfg_on": cfg_on, "fixed_kappa": fixed, "steps": 1}))
    assert (seen["frozen"], seen["lora"]) == expected


def test_the_clip_loss_takes_one_sample_in_so_many_and_fades(short, clip, monkeypatch):
    counts = []

    def counted(images, texts, margin):
        counts.append(len(images))
        return clamped_clip_loss(images, texts, margin)

    monkeypatch.setattr(clip_of_training, "clamped_clip_loss", counted)
    with_clip = {"clip": {"model": str(clip), "decoder": None, "one_in": 4, "margin": 1.0}, "batch_size": 8}
    distill.distill(parse(short | with_clip | {"micro_batch": 2}))
    assert counts == [1, 1] * 2  # of four parts of two rows, the first and the third
    assert all(line["clip_loss"] > 0 for line in lines(short))


def test_a_student_may_start_elsewhere(short, tmp_path):
    from small_models import make_teacher

    torch.manual_seed(1)
    other = make_teacher(tmp_path / "other")
    narrow = make_teacher(tmp_path / "narrow", width=64)
    backbone = load_backbone("stable_diffusion", short["teacher"])
    started = {"learning_rate": 1e-9, "start_from": str(other)}
    distill.distill(parse(short | {"student": started, "steps": 1}))
    expected = load_backbone("stable_diffusion", str(other)).network.state_dict()
    found = load_newest(tmp_path / "run").weights["student"]
    assert all(torch.allclose(found[key], expected[key], atol=1e-7) for key in expected)
    with pytest.raises(UserError, match="has other layers than the teacher"):
        plain_student(backbone, parse(short | {"student": started | {"start_from": str(narrow)}}).student, {})


def test_what_is_not_installed_is_a_sentence(short):
    for change, sentence in (
        ({"optimizer": "adamw_8bit"}, "needs bitsandbytes"),
        ({"tracker": "wandb"}, "wandb, but it is not installed"),
        ({"tracker": "abacus"}, "tracker is 'abacus'; allowed is one of"),
    ):
        try:
            __import__({"adamw_8bit": "bitsandbytes"}.get(change.get("optimizer"), change.get("tracker") or ""))
        except ImportError:
            with pytest.raises(UserError, match=sentence):
                distill.distill(parse(short | change))


def different(one: config.Config, other: config.Config) -> set[str]:
    """The settings in which two configs differ."""
    one, other = dict(config.flat(one)), dict(config.flat(other))
    return {key for key in one | other if one.get(key) != other.get(key)}


def test_shipped_configs_are_table_6():
    loaded = {path.stem: config.load(path) for path in CONFIGS.rglob("*.yaml")}
    for name, steps, kappa in (("sd15", 60_000, (0.5, 4)), ("sd21", 40_000, (0.5, 4)), ("pixart", 60_000, (0.5, 3))):
        row = loaded[name]
        assert (row.batch_size, row.steps, row.mixed_precision, row.kappa) == (64, steps, "bf16", kappa)
        assert (row.clip.weight, row.clip.margin, row.cfg_on, row.nasa) == (0.1, 0.37, "both", None)
        assert (row.student.learning_rate, row.lora.learning_rate) == (1e-6, 1e-3)
        assert (row.lora.rank, row.lora.alpha, row.lora.updates) == (64, 128, 1)
    assert loaded["sd21"].student.start_from == "stabilityai/sd-turbo" and loaded["sd15"].student.start_from is None
    assert all(loaded[name].student.ema_decay == 0.9999 for name in ("sd15", "sd21", "pixart", "swiftbrush"))


@pytest.mark.parametrize("base, ending", [("sd15", ""), ("pixart", "_pixart")])
def test_the_runs_of_figure_2_differ_in_kappa_alone(base, ending):
    base, fixed = config.load(CONFIGS / f"{base}.yaml"), config.load(CONFIGS / f"ablations/swiftbrush{ending}.yaml")
    assert fixed.kappa == (4.5, 4.5) and different(base, fixed) == {"output", "kappa"}
    five = config.load(CONFIGS / f"ablations/two_time_scale{ending}.yaml")
    assert five.lora.updates == 5 and different(fixed, five) == {"output", "lora.updates"}


def test_the_cells_of_table_2_differ_in_where_the_scale_is_random():
    cells = {name: config.load(CONFIGS / f"ablations/table2_{name}.yaml") for name in ("none", "teacher", "lora")}
    for name, cell in cells.items():
        assert (cell.cfg_on, cell.fixed_kappa, cell.kappa) == (name, sum(cell.kappa) / 2, (0.5, 4))
        assert different(cell, cells["none"]) <= {"output", "cfg_on"}
    both = config.load(CONFIGS / "ablations/table2_both.yaml")
    assert both.cfg_on == "both" and different(both, config.load(CONFIGS / "sd21.yaml")) == {"output"}


@pytest.mark.parametrize("ending, base, batch, steps", [("", "pixart", 32, 50_000), ("_sd15", "sd15", 64, 60_000),
                                                        ("_sd21", "sd21", 64, 40_000)])  # fmt: skip
def test_nasa_t_is_shipped_for_all_three_backbones(ending, base, batch, steps):
    trained, base = config.load(CONFIGS / f"ablations/nasa_t{ending}.yaml"), config.load(CONFIGS / f"{base}.yaml")
    assert (trained.nasa.alpha, trained.batch_size, trained.steps) == ((0, 1), batch, steps)
    changed = {key for key in different(base, trained) if not key.startswith("nasa")}
    assert changed <= {"output", "batch_size", "steps"}


def test_a_random_scale_on_one_score_beside_a_fixed_one_far_from_its_mean_is_warned_of(short, capsys):
    settings = parse(short | {"cfg_on": "teacher", "steps": 1})
    distill.distill(settings)
    sentence = "warning: cfg_on is teacher and fixed_kappa 1: .* set `fixed_kappa: 2.25`, the mean of kappa."
    assert re.search(sentence, capsys.readouterr().err) and re.search(sentence, report(settings))
    for path in CONFIGS.rglob("*.yaml"):
        shipped = config.load(path)
        assert guidance.unequal_scales(shipped.cfg_on, shipped.kappa, shipped.fixed_kappa) is None


def test_encoded_prompts_spare_the_text_encoder(everything, tmp_path, monkeypatch):
    settings = parse(everything | {"encoded_prompts": str(tmp_path / "encoded")})
    encode_config(settings)
    monkeypatch.setattr("transformers.T5EncoderModel.from_pretrained", lambda *_, **__: pytest.fail("loaded T5"))
    distill.distill(settings)
    assert [line["step"] for line in lines(everything)] == [1, 2]


def test_adam_in_8_bits_resumes_to_the_same_bits(short, tmp_path):
    settings = short | {"optimizer": "adamw_8bit"}
    distill.distill(parse(settings))
    with pytest.raises(KeyboardInterrupt):
        distill.distill(parse(settings | {"output": str(tmp_path / "other")}), stop=lambda: True)
    distill.distill(parse(settings | {"output": str(tmp_path / "other")}), resume=True)
    whole, again = load_newest(tmp_path / "run").weights, load_newest(tmp_path / "other").weights
    assert all(torch.equal(whole[role][key], again[role][key]) for role in whole for key in whole[role])


def test_tensorboard_gets_figures_and_pictures(short, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    distill.distill(parse(short | {"tracker": "tensorboard"}))
    read = EventAccumulator(str(next((tmp_path / "run/snoopi").glob("*tfevents*"))))
    read.Reload()
    assert read.Tags()["images"] == ["samples"] and {"vsd_loss", "kappa", "score_gap"} <= set(read.Tags()["scalars"])
