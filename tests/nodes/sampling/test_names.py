"""What names of files tell `auto`: 47 names of the field and more than 100 others, none of them wrong.

model_names.tsv holds the names, the right answer to each and where the name is from.
"""

from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("model_names.tsv")
LINES = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
FIELD = [line for line in LINES if line[4] == "field-2026, model-file-names.tsv"]


def answer(sampling, family, name, kind):
    """What the file's name alone tells: the name of a row, undistilled or unknown."""
    file = sampling.files.ModelFile(name)
    named, _ = sampling.names.named_by(file, family, kind == "lora")
    if named.row:
        return named.row.name
    return "undistilled" if kind == "model" and sampling.names.is_published_base(name, family) else "unknown"


def test_the_table_holds_the_47_names_and_100_more():
    assert len(FIELD) == 47 and len(LINES) >= 147
    assert all(len(line) == 5 and line[4] for line in LINES)


@pytest.mark.parametrize("family", sorted({line[0] for line in LINES}))
def test_no_name_is_taken_for_another_model(sampling, family):
    wrong = {
        (name, kind): (found, right)
        for listed, name, kind, right, _ in LINES
        if listed == family and (found := answer(sampling, family, name, kind)) != right
    }
    assert not wrong
