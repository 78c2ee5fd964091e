"""Configs, prompt files and the command line: a sentence that names what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from training.errors import UserError
from training.prompts.order import PromptOrder
from training.prompts.read import read_prompts
from training.recipe import config

REPOSITORY = Path(__file__).parents[2]
LEAST = {"teacher": "t", "prompts": "p.txt", "output": "o"}


def test_sd15_is_table_6():
    settings = config.load(REPOSITORY / "training/configs/sd15.yaml")
    assert (settings.batch_size, settings.steps, settings.kappa) == (64, 60_000, (0.5, 4))
    assert (settings.student.learning_rate, settings.lora.learning_rate) == (1e-6, 1e-3)
    assert (settings.lora.rank, settings.lora.alpha, settings.mixed_precision) == (64, 128, "bf16")
    assert (settings.start.timestep, settings.start.noise) == (999, "unit")
    assert read_prompts(REPOSITORY / settings.prompts)


def test_defaults_are_those_of_nearby_code():
    settings = config.parse(LEAST | {"clip": {}, "nasa": {}})
    assert (settings.student.weight_decay, settings.lora.weight_decay) == (0, 0)
    assert (settings.clip.model, settings.clip.margin) == ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 0.37)
    assert settings.clip.one_in == 8 and settings.clip.final_weight == pytest.approx(settings.clip.weight * 0.0014)
    assert (settings.student.ema_decay, settings.student.ema_ramp) == (0.9999, True)
    assert settings.lora.fresh and settings.lora.fresh_prompts


def test_what_is_saved_reads_back_the_same():
    settings = config.parse(
        LEAST | {"warm_start": {"steps": 3, "pairs": 5}, "lora": {"targets": "all-linear-and-conv"}}
    )
    assert config.parse(yaml.safe_load(yaml.safe_dump(config.to_dict(settings)))) == settings
    assert config.differences(settings, settings) == []


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"batchsize": 3}, "no setting `batchsize`; did you mean `batch_size`?"),
        ({"lora": {"rnak": 3}}, "no setting `lora.rnak`; did you mean `rank`?"),
        ({"batch_size": 0}, "batch_size is 0; allowed is a whole number from 1 to 65536"),
        ({"batch_size": "many"}, "batch_size is 'many'"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"steps": None}, "steps is None"),
        ({"student": {"learning_rate": float("nan")}}, "student.learning_rate is nan"),
        ({"student": 3}, "student is 3; it must be a mapping"),
        ({"kappa": [4, 0.5]}, "kappa is .*smaller number first"),
        ({"kappa": 4}, "kappa is 4; allowed is a list of 2 numbers"),
        ({"cfg_on": "all"}, "cfg_on is 'all'; allowed is one of both, teacher, lora, none"),
        ({"start": {"timestep": 1000}}, "start.timestep is 1000"),
        ({"lora": {"targets": []}}, "lora.targets is"),
        ({"warm_start": {"steps": 3}}, "`warm_start.pairs` is missing"),
        ({"teacher": ""}, "teacher is ''"),
        ({"batch_size": 6, "micro_batch": 4}, "batch_size is 6; it must be a multiple of micro_batch, 4"),
        ({"nasa": {"alpha": [1, 0]}}, "nasa.alpha is .*smaller number first"),
        ({"null_prompt": 3}, "null_prompt is 3; allowed is a text"),
        ({"mixed_precision": "fp16"}, "mixed_precision is 'fp16'"),
    ],
)
def test_impossible_settings(wrong, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        config.parse(LEAST | wrong)


def test_numbers_as_yaml_1_1_writes_them():
    settings = config.parse(LEAST | yaml.safe_load("student: {learning_rate: 1e-6}\nmixed_precision: no"))
    assert settings.student.learning_rate == 1e-6 and settings.mixed_precision == "no"


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("empty.txt", " \n\n", "holds no prompt"),
        ("broken.jsonl", '{"prompt": "a"}\n{oops', "line 2: not valid JSON"),
        ("wrong.jsonl", '{"word": "a"}', "line 1: no prompt"),
        ("picture.png", "x", "must end in .txt"),
    ],
)
def test_bad_prompt_files(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_prompts(tmp_path / name)


def test_prompt_order_is_a_permutation_a_pass_and_addressed_by_position():
    order = PromptOrder(7, seed=3)
    stream = order.batch(0, 21)
    assert all(sorted(stream[start : start + 7]) == list(range(7)) for start in (0, 7, 14))
    assert stream[:7] != stream[7:14]
    assert PromptOrder(7, seed=3).batch(10, 5) == stream[10:15]


def test_command_line_tells_a_mistake_in_one_line(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LEAST | {"stepz": 3}))
    command = [sys.executable, "-m", "training", "distill", str(tmp_path / "c.yaml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("there is no setting `stepz`; did you mean `steps`?")
    assert "Traceback" not in done.stderr


def test_extends_takes_what_the_file_leaves_out(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(LEAST | {"lora": {"rank": 8, "updates": 5}, "kappa": [1, 2]}))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/over.yaml").write_text("extends: ../base.yaml\nlora: {rank: 4}\nsteps: 3\n")
    found = config.load(tmp_path / "sub/over.yaml")
    assert (found.lora.rank, found.lora.updates, found.kappa, found.steps) == (4, 5, (1, 2), 3)
    (tmp_path / "base.yaml").write_text("extends: sub/over.yaml\n")
    with pytest.raises(UserError, match="no circle of them"):
        config.load(tmp_path / "base.yaml")
