"""Prompt files as people have them, and every way in which they are wrong."""

import json
import os

import pyarrow
import pyarrow.parquet as parquet
import pytest

from training.errors import UserError
from training.prompts import read as module
from training.prompts.read import LONGEST, digest, read_prompts, snapshot

PROMPTS = ["a red circle", "a photo of a café", "two pets"]


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_the_three_formats_give_the_same_list_and_ids(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff".encode() + "\r\n".join(PROMPTS).encode() + b"\r\n\r\n")
    rows = [{"caption": PROMPTS[0], "id": 7}, {"text": PROMPTS[1]}, PROMPTS[2]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_parquet(tmp_path / "a.parquet", id=[1, 2, 3], prompt=[f" {prompt} " for prompt in PROMPTS])
    lists = [read_prompts(tmp_path / f"a.{suffix}") for suffix in ("txt", "jsonl", "parquet")]
    assert lists == [PROMPTS] * 3
    assert digest(lists[0]) == digest(lists[2]) != digest(PROMPTS[::-1])


def test_a_named_column_wins(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", prompt=["no"], description=["yes"])
    assert read_prompts(path, column="description") == ["yes"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "no", "description": "yes"}\n')
    assert read_prompts(tmp_path / "a.jsonl", column="description") == ["yes"]


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("empty.txt", b"a\n\nb\n\n", r"empty.txt, line 2: no prompt; .*\(1 such"),
        ("huge.txt", b"a\n" + b"x" * (LONGEST + 1), "line 2: the prompt has 10001 characters, allowed are 10000"),
        ("nul.txt", b"a\nb\0c\n", "line 2: a NUL character"),
        ("latin.txt", b"a\nb\ncaf\xe9\n", "line 3: not UTF-8"),
        ("wide.txt", "a\nb\n".encode("utf-16"), "line 1: this is UTF-16"),
        ("empty.jsonl", b'{"prompt": "a"}\n{"prompt": " "}\n{"prompt": ""}\n', r"line 2: no prompt; .*\(2 such"),
        ("number.jsonl", b'{"prompt": 3}', "line 1: no prompt"),
        ("wrong.jsonl", b'{"words": "a"}', "line 1: no prompt; there is no key `prompt` or `caption` or `text`"),
        ("broken.jsonl", b'{"prompt": "a"}\n{oops', "line 2: not valid JSON"),
        ("deep.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("short.parquet", b"PAR1 and then nothing", "after row 0: the parquet file is damaged"),
        ("none.txt", b"\n \n", "holds no prompt"),
    ],
)
def test_a_bad_file_is_one_sentence_with_file_and_line(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refused:
        read_prompts(tmp_path / name)
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_bad_parquet(tmp_path):
    with pytest.raises(UserError, match="has no column `prompt` or .*; it has id, words"):
        read_prompts(write_parquet(tmp_path / "a.parquet", id=[1], words=["a"]))
    with pytest.raises(UserError, match="has no column `nope`"):
        read_prompts(tmp_path / "a.parquet", column="nope")
    with pytest.raises(UserError, match="the column `prompt` holds int64"):
        read_prompts(write_parquet(tmp_path / "b.parquet", prompt=[1]))
    with pytest.raises(UserError, match="row 2: no prompt"):
        read_prompts(write_parquet(tmp_path / "c.parquet", prompt=["a", None, "c"]))
    whole = write_parquet(tmp_path / "d.parquet", prompt=[f"prompt {n}" for n in range(20_000)]).read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[:50] + bytes(5000) + whole[5050:])  # the footer is whole, a page is not
    with pytest.raises(UserError, match=r"d.parquet.* after row \d+"):
        read_prompts(tmp_path / "d.parquet")
    with pytest.raises(UserError, match="Cannot read .*none.parquet"):
        read_prompts(tmp_path / "none.parquet")


def test_bad_prompts_can_be_skipped(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a\n\nb\n")
    assert read_prompts(tmp_path / "a.txt", skip_bad=True) == ["a", "b"]
    assert "1 empty or huge prompts are left out; the first is line 2" in capsys.readouterr().err


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A dataset folder of two parquet files, with a column beside the text, and a cache folder of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for part in range(2):
        texts = [f"prompt {part} {row}" for row in range(50)]
        write_parquet(tmp_path / "set" / f"train-{part}.parquet", caption=texts, pixels=[b"x" * 100] * 50)
    return f"datasets://{tmp_path / 'set'}?split=train"


def test_a_streamed_dataset_is_fetched_once_and_goes_on_after_a_kill(dataset, tmp_path, monkeypatch):
    wanted = [f"prompt {part} {row}" for part in range(2) for row in range(50)]
    real, written = json.dumps, []

    def killed(value):
        if len(written) == 30:
            raise KeyboardInterrupt
        written.append(value)
        return real(value)

    monkeypatch.setattr(module.json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        read_prompts(dataset)
    partial = next((tmp_path / "cache/snoopi-prompts").glob("*.partial"))
    partial.write_bytes(partial.read_bytes()[:-5])  # a kill may cut a line
    monkeypatch.setattr(module.json, "dumps", lambda value: written.append(value) or real(value))
    assert read_prompts(dataset) == wanted
    texts = [value for value in written if isinstance(value, str)]  # the library writes JSON too
    assert 100 < len(texts) <= 131 and texts[-1] == wanted[-1]  # what was there is not fetched again
    for file in (tmp_path / "set").iterdir():
        file.unlink()
    assert read_prompts(dataset) == wanted and snapshot(dataset).exists()


def test_a_dataset_that_is_not_there_is_one_sentence(dataset):
    with pytest.raises(UserError, match="Cannot fetch prompts from datasets:///nowhere/at/all"):
        read_prompts("datasets:///nowhere/at/all")
    with pytest.raises(UserError, match="no option `part`; known are split, name and revision"):
        read_prompts(dataset + "&part=3")
    with pytest.raises(UserError, match="has no column `prompts`; it has caption, pixels"):
        read_prompts(dataset, column="prompts")


def test_a_line_without_an_end_and_a_pipe_are_sentences(tmp_path, monkeypatch):
    """Neither memory nor time without bound."""
    monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    (tmp_path / "a.txt").write_text("a pet\n" + "x" * 5000)
    with pytest.raises(UserError, match="a.txt, line 2: longer than 16 MiB"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("a pet\n" + "x" * 999 + "\n" + "y" * 999)
    assert [len(prompt) for prompt in read_prompts(tmp_path / "a.txt")] == [5, 999, 999]
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="pipe.txt is a pipe or a device; give a file"):
        read_prompts(tmp_path / "pipe.txt")
