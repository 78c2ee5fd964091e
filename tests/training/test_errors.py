"""What others wrote, as it gets into a sentence."""

from pathlib import Path

import pytest

from training.errors import LONGEST_QUOTE, LONGEST_SENTENCE, UserError, quoted, quoted_value
from training.recipe.config import parse


def nested(depth: int) -> list:
    """A bomb of aliases, as YAML builds it: ten times as many words at every level."""
    found = ["lol"] * 10
    for _ in range(depth):
        found = [found] * 10
    return found


circle = []
circle.append(circle)


TEXTS = [
        "a\nb\rc\td\0e\x1b[31mred\x7f",
        "\ud800 lone",
        "file-\udcff.txt",
        "\u202egnp.exe",
        "\u2028line",
        "x" * 10**6,
        "\n" * 10**6,
        Path("/a" * 500),
        nested(40),
        circle,
        {"a": circle},
        16**9000,
        b"\xff" * 1000,
        ValueError("many\n   lines\0 " + "x" * 1000),
        None,
        float("nan"),
        "emoji \U0001f600 and \u4e2d\u6587",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TEXTS)))  # pytest would make a name of the value
def test_whatever_is_quoted_is_one_short_line_that_utf8_can_hold(number):
    text = TEXTS[number]
    for shown in (quoted(text), quoted_value(text)):
        assert shown.isprintable() and len(shown) <= (160 if isinstance(text, Exception) else LONGEST_QUOTE)
        shown.encode()
    sentence = str(UserError(f"The thing {text if isinstance(text, str) else quoted(text)} is bad; give another."))
    assert sentence.isprintable() and len(sentence) <= LONGEST_SENTENCE and sentence.endswith("give another.")


def test_short_plain_text_stays_and_of_a_long_path_both_ends_stay():
    assert quoted("a red circle, café, 中文, 😀") == "a red circle, café, 中文, 😀"
    assert quoted(Path("/home/me/runs/sd15")) == "/home/me/runs/sd15"
    assert quoted_value("1") == "'1'" and quoted_value(1) == "1"
    long = quoted("/home/me/" + "deep/" * 100 + "model.safetensors")
    assert long.startswith("/home/me/") and long.endswith("/model.safetensors") and "..." in long


VALUES = {"bomb": nested(40), "circle": circle, "long": "x" * 10**5, "half": "\ud800", "huge": 16**9000, "nul": "a\0b"}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("key", ["batch_size", "kappa", "start", "sample_prompts", "device", "seed", "teacher", "nope"])
def test_a_setting_of_any_contents_is_one_sentence(key, name):
    """A long name of a folder is told later, where the folder is read."""
    value = VALUES[name]
    plain = {"teacher": "a/b", "prompts": "p.txt", "output": "run"} | {key: value}
    if key == "teacher" and name == "long":
        assert parse(plain).teacher == value
        return
    with pytest.raises(UserError) as refused:
        parse(plain)
    assert key in str(refused.value) and len(str(refused.value)) <= LONGEST_SENTENCE
    assert str(refused.value).isprintable()
