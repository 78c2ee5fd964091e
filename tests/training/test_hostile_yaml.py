"""Whatever stands in a config: plain settings, or one sentence with file, line and setting."""

import os

import pytest
import yaml

from training.errors import UserError
from training.recipe import config

LEAST = {"teacher": "t", "prompts": "p.txt", "output": "o"}
BASE = yaml.safe_dump(LEAST)  # three lines


def aliases(depth: int, width: int, row: str) -> str:
    """Each alias holds the one before `width` times."""
    return "".join(row.format(n=n, all=", ".join([f"*a{n - 1}"] * width if n else ["1"])) for n in range(depth))


@pytest.mark.parametrize(
    "content, place",
    [
        ("batch_size: !!bool maybe", "line 4, batch_size: 'maybe' cannot be read as !!bool."),
        ("lora:\n  rank: !!timestamp abc", "line 5, lora.rank: 'abc' cannot be read as !!timestamp."),
        ("lora:\n  rank: 2001-99-99", "line 5, lora.rank: '2001-99-99' cannot be read as !!timestamp."),
        ("steps: !!python/object/apply:os.system [id]", "line 4, steps: what stands there cannot be read as !!python"),
        (f"steps: {'9' * 10_000}", "line 4, steps: '9999"),
        ("steps: {[a]: b}", "steps is {'[...]': 'b'}"),
        ("kappa: [{[a]: b}]", "line 4, kappa: what stands there cannot be read as !!seq."),
        ("x: &x\n  y: *x", "line 4, x: it holds itself, or more than a config can (aliases written out)."),
        ("kappa: &k [*k]", "line 4, kappa: it holds itself"),
        (aliases(9, 9, "a{n}: &a{n} [{all}]\n"), "line 9, a5: it holds itself"),
        (aliases(9, 9, "a{n}: &a{n} {{k: 1, <<: [{all}]}}\n").replace("<<: [1]", "b: 1"), ": it holds itself"),
        ("sample_prompts: " + "[" * 5_000, "line 4, sample_prompts: it is nested deeper than 8 levels."),
        ("# " + "x" * 2**20, "is not a YAML file of at most 1048576 bytes."),
        ("tracker: a\0b", "line 4: the character 0x0 is not allowed."),
        ("tracker: café".encode("latin-1"), "line 4: it is not UTF-8 text."),
        ("lora:\n\trank: 3", "line 5, lora: found character '\\t' that cannot start any token."),
        (f"tracker: [{'v' * 100_000}]", "tracker is ['vvvv"),
        ('"\\ud800<b>\\0": 1', "there is no setting `\\ud800<b>\\x00`"),
        ('extends: "a\\0b"', "there can be no file of that name."),
        ('extends: "\\ud800"', "there can be no file of that name."),
        ("extends: [a]", "extends is ['a']; name one other config file"),
    ],
)  # fmt: skip
def test_b13_whatever_is_in_a_config(tmp_path, content, place):
    path = tmp_path / "c.yaml"
    path.write_bytes(BASE.encode() + (content if isinstance(content, bytes) else content.encode()))
    with pytest.raises(UserError) as error:
        config.load(path)
    sentence = str(error.value)
    assert place in sentence and len(sentence) <= 600 and sentence.isprintable()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_b13_whatever_a_config_is(tmp_path, make):
    make(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="^(Cannot read the config|The config .* is not a YAML file)"):
        config.load(tmp_path / "c.yaml")


def test_b13_anchors_and_merges_serve_as_before(tmp_path):
    path = tmp_path / "c.yaml"
    more = "lora: &l {rank: 8, betas: &b [0.5, 0.9]}\nstudent: {betas: *b}\n"
    path.write_text("\ufeff" + BASE + more, encoding="utf-8")
    found = config.load(path)
    assert found.lora.rank == 8 and found.student.betas == found.lora.betas == (0.5, 0.9)
