"""--set on the command line, the place in a sentence, and the list of all settings."""

import json
from pathlib import Path

import pytest
import yaml

from training.__main__ import main
from training.errors import UserError
from training.recipe import config
from training.recipe.described import described
from training.recipe.schema import allowed, settings_of

LEAST = {"teacher": "t", "prompts": "p.txt", "output": "o"}


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"lora": {"rank": 8, "updates": 5}, "clip": None, "kappa": [1, 2]}))
    return path


@pytest.mark.parametrize(
    "change, key, value",
    [
        ("lora.rank=32", "lora.rank", 32),
        ("lora.rank=0x10", "lora.rank", 16),
        ("student.learning_rate=1e-5", "student.learning_rate", 1e-5),
        ("kappa=[2, 5]", "kappa", [2.0, 5.0]),
        ("mixed_precision=no", "mixed_precision", "no"),
        ("clip.weight=.2", "clip.weight", 0.2),
        ("student.lora={rank: 4}", "student.lora.rank", 4),
        ("null_prompt=a = b", "null_prompt", "a = b"),
        ("lora.targets=all-linear-and-conv", "lora.targets", "all-linear-and-conv"),
        ("lora.targets=[to_q, to_k]", "lora.targets", ["to_q", "to_k"]),
        ("tracker=null", "tracker", None),
        ("tracker=", "tracker", None),
    ],
)
def test_set_comes_last_and_leaves_the_rest(file, change, key, value):
    found = dict(config.flat(config.load(file, changes=[change])))
    assert found[key] == value and found["lora.updates"] == 5


def test_of_two_the_later_counts_and_output_comes_after_both(file):
    found = config.load(file, "mine", ["steps=3", "steps=4", "output=other"])
    assert found.steps == 4 and found.output == "mine"


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("lora.rnk=3", "--set lora.rnk=3: there is no setting `lora.rnk`; did you mean `rank`?"),
        ("loar.rank=3", "--set loar.rank=3: there is no setting `loar`; did you mean `lora`?"),
        ("lora.rank=many", "--set lora.rank=many: lora.rank is 'many'; allowed is a whole number from 1 to 4096."),
        ("lora.rank", "--set lora.rank: write a setting and its value, as in --set lora.rank=32."),
        ("=3", "--set =3: write a setting and its value, as in --set lora.rank=32."),
        ("lora.=3", "--set lora.=3: write a setting and its value, as in --set lora.rank=32."),
        ("kappa=[1, 2", "--set kappa=[1, 2: the value is not valid YAML"),
        ("kappa=[4, 1]", "--set kappa=[4, 1]: kappa is [4, 1]; write the smaller number first."),
        ("batch_size.x=3", "batch_size is {'x': 3}; allowed is a whole number from 1 to 65536."),
        ("extends=other.yaml", "there is no setting `extends`"),
        ("steps=0", "--set steps=0: steps is 0 and there is no warm start"),
        ("lora=&a [*a]", "--set lora=&a [*a]: the value is not valid YAML"),
        ("clip=!!python/object:os.system {}", "the value is not valid YAML"),
        ("teacher=\ud800", "--set teacher=\\ud800: "),
    ],
)
def test_a_wrong_set_is_one_sentence_that_repeats_it(file, change, sentence, capsys):
    assert main(["distill", str(file), "--dry-run", "--set", change]) == 2
    told = capsys.readouterr().err.strip()
    assert sentence in told and told.startswith("error: ") and len(told.splitlines()) == 1


def test_set_is_what_the_run_and_the_dry_run_get(file, capsys, monkeypatch):
    monkeypatch.setattr("training.commands.encode.encode_config", lambda config, *_: config.lora.rank)
    assert main(["encode", str(file), "--set", "lora.rank=4"]) == 0
    assert capsys.readouterr().out.strip() == "4"
    arguments = ["distill", "training/configs/sd15.yaml", "--dry-run", "--set", "lora.rank=7"]
    assert main(arguments) == 0
    assert "\n  rank: 7\n" in capsys.readouterr().out


def test_a_sentence_names_file_and_line_also_of_what_is_extended(tmp_path):
    (tmp_path / "base.yaml").write_text("teacher: t\nprompts: p\noutput: o\nlora:\n  # a comment\n  rank: many\n")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nsteps: 3\nkapa: [1, 2]\n")
    with pytest.raises(UserError) as error:
        config.load(tmp_path / "over.yaml")
    assert str(error.value).startswith(f"{tmp_path / 'over.yaml'}, line 3: there is no setting `kapa`; did you mean")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nsteps: 3\n")
    with pytest.raises(UserError) as error:
        config.load(tmp_path / "over.yaml")
    assert str(error.value).startswith(f"{tmp_path / 'base.yaml'}, line 6: lora.rank is 'many'; allowed is")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nlora: {rank: 0}\n")
    with pytest.raises(UserError) as error:
        config.load(tmp_path / "over.yaml")
    assert str(error.value).startswith(f"{tmp_path / 'over.yaml'}, line 2: lora.rank is 0;")


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"kappa": [1, True]}, "kappa is [1, True]; allowed is a list of 2 numbers from 0 to 100."),
        ({"kappa": [1, 2, 3]}, "kappa is [1, 2, 3]; allowed is a list of 2 numbers"),
        ({"kappa": [1]}, "kappa is [1]; allowed is a list of 2 numbers"),
        ({"lora": {"targets": ["to_q", ""]}}, "lora.targets is ['to_q', '']; allowed is a list of words, at least one"),
        (
            {"lora": {"targets": "all"}},
            "lora.targets is 'all'; allowed is a list of words, at least one, or all-linear",
        ),
        ({"lora": None}, "lora is None; it must be a mapping of settings."),
        ({"student": {"lora": {"rank": 0}}}, "student.lora.rank is 0; allowed is a whole number from 1 to 4096."),
        ({"student": {"lora": 3}}, "student.lora is 3; it must be a mapping of settings."),
        ({"micro_batch": 0}, "micro_batch is 0; allowed is a whole number from 1 to 65536, or null."),
        ({"seed": 10**400}, "allowed is a whole number from 0 to 2147483647."),
        ({"seed": 2**31}, "seed is 2147483648; allowed is a whole number from 0 to 2147483647."),
        ({"skip_bad_prompts": "yes"}, "skip_bad_prompts is 'yes'; allowed is true or false."),
        ({"skip_bad_prompts": 1}, "skip_bad_prompts is 1; allowed is true or false."),
        ({"student": {"ema_decay": float("inf")}}, "student.ema_decay is inf; allowed is a number from 0 to 0.999999"),
        ({"prompts": "a\0b"}, "prompts is 'a\\x00b'; allowed is a text that is not empty."),
        ({"lora": {"\ud800": 1}}, "there is no setting `lora.\\ud800`; known are: rank, alpha"),
        ({"warm_start": {"stps": 3}}, "there is no setting `warm_start.stps`; did you mean `steps`?"),
    ],
)
def test_every_kind_of_setting_is_refused_with_what_is_allowed(wrong, sentence):
    with pytest.raises(UserError) as error:
        config.parse(LEAST | wrong)
    assert str(error.value).startswith("config: ") and sentence in str(error.value)


def test_all_settings_are_described_with_default_and_range(capsys):
    assert main(["settings"]) == 0
    told = capsys.readouterr().out
    assert "batch_size: 64   (a whole number from 1 to 65536)\n    of all processes together; Table 6\n" in told
    assert "lora.weight: alpha_squared   (one of alpha_squared, uniform, velocity)\n" in told
    assert "teacher: must be given   (a text that is not empty)\n" in told
    for key, field in settings_of(config.Config):
        assert f"{key}: " in told and field.description and allowed(field)
    keys = {key for key, _ in config.flat(config.parse(LEAST | {"clip": {}, "nasa": {}, "student": {"lora": {}},
            "warm_start": {"steps": 1, "pairs": 1}}))}  # fmt: skip
    assert keys <= {key for key, _ in settings_of(config.Config)}


def test_settings_of_one_word(capsys):
    assert (
        described("warm_start.p").splitlines()[0]
        == "warm_start.pairs: must be given   (a whole number from 1 to 100000000)"
    )
    assert main(["settings", "nonsense"]) == 2
    assert capsys.readouterr().err == "error: No setting's name holds nonsense; leave the word out to see them all.\n"


def test_a_config_is_plain_values_again():
    plain = config.to_dict(config.parse(LEAST))
    assert json.loads(json.dumps(plain)) == plain == config.to_dict(config.parse(plain))
    assert list(plain)[:3] == ["backbone", "teacher", "teacher_parts"] and plain["kappa"] == [0.5, 4.0]
