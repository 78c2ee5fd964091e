"""Texts of users on their way out: bounded, printable on any console, no HTML in the browser."""

import io
import sys
import traceback

import pytest
import torch


@pytest.fixture(scope="module")
def quoting(pack):
    return sys.modules[f"{pack.root.__name__}.nodes.quoting"]


BOMB = ["x"] * 10
for _ in range(20):
    BOMB = [BOMB] * 10  # 10^21 words
CYCLE = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value, expected",
    [
        ("model.safetensors", "model.safetensors"),
        ("café 猫 \N{CAT FACE}", "café 猫 \N{CAT FACE}"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("a\0\n\x1b[31m\u202e", "a\\x00\\n\\x1b[31m\\u202e"),
        ("x" * 10**7 + ".sft", None),
        (["vp"], "['vp']"),
        (CYCLE, "[[[[...]]]]"),
        (BOMB, None),
        (10**10_000, None),
        ({"\ud800": float("nan")}, "{'\\ud800': nan}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_b11_quoted(quoting, value, expected):
    found = quoting.quoted(value)
    assert len(found) <= 100 and found.isprintable() and (expected is None or found == expected)
    if isinstance(value, str):  # what tells files apart is at their end
        assert found.endswith(value[-4:] if value.isprintable() else value[-1].encode("unicode_escape").decode())


def test_b11_no_sentence_is_longer_than_600(quoting):
    for write in (quoting.sentence, quoting.shown):
        text = write("begins " + "x" * 9_999 + " remedy.")
        assert len(text) == 600 and text.startswith("begins ") and text.endswith(" remedy.")
    assert len(quoting.listed(f"preset {number}" for number in range(9_999))) <= 310


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_b11_an_error_can_be_printed_with_all_that_caused_it(quoting, monkeypatch, encoding):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))

    @quoting.printable_errors
    def execute(cls, cause, text):
        try:
            raise OSError(cause)
        except OSError as error:
            raise ValueError(text) from error

    for cause, text in (("\ud800", "plain"), ("plain", "\udcff \N{CAT FACE}"), ("\N{CAT FACE}", "x" * 9_999)):
        with pytest.raises(ValueError) as error:
            execute(None, cause, text)
        assert len(str(error.value)) <= 600
        sys.stderr.write("".join(traceback.format_exception(error.value)))  # as ComfyUI's worker does
    with pytest.raises(ValueError, match="plain") as error:
        execute(None, "plain", "plain")
    assert isinstance(error.value.__cause__, OSError)  # what can be printed is kept


def test_b11_errors_of_other_kinds_stay_what_they_are(quoting):
    @quoting.printable_errors
    def execute(cls, error):
        raise error

    for error in (torch.cuda.OutOfMemoryError("x" * 9_999), RuntimeError("x" * 9_999), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            execute(None, error)
        assert raised.value is error


def test_b12_what_is_shown_is_no_html(quoting):
    assert quoting.shown("<img src=x onerror=alert(1)>") == "‹img src=x onerror=alert(1)›"
