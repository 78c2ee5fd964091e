"""What names of files tell `auto`: 47 names of the field and more than 100 others, none of them wrong.

model_names.tsv holds the names, the right answer to each and where the name is from.
"""

import json
from pathlib import Path

import pytest

WORKFLOWS = sorted((Path(__file__).parents[3] / "workflows").glob("*.json"))
TABLE = Path(__file__).with_name("model_names.tsv")
LINES = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
FIELD = [line for line in LINES if line[4] == "field-2026, model-file-names.tsv"]
NOT_BY_NAME = {"snoopi-shapes", "snoopi-portraits"}  # whose file says so itself


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


def test_a_published_base_model_is_never_taken_for_what_was_made_of_it(sampling):
    """Though the names of some few-step models begin with those of their bases."""
    bases = [(family, pattern.replace("*", "-x-")) for family, patterns in sampling.names._data()["undistilled"].items()
             for pattern in patterns]  # fmt: skip
    found = {(family, name): answer(sampling, family, f"{name}.safetensors", "model") for family, name in bases}
    assert found and set(found.values()) == {"undistilled"}, found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_auto_takes_the_preset_that_a_template_names(sampling, path):
    """By the files it loads, of which a model of two stages has several."""
    nodes, rows = json.loads(path.read_text())["nodes"], sampling.presets.read_presets()
    ours = [node for node in nodes if node["type"].startswith("SNOOPI")]
    chosen = {rows[value].name for node in ours for value in node["widgets_values"] if value in rows}
    files = [(str(value), "Lora" in node["type"]) for node in nodes if "Loader" in node["type"]
             for value in node["widgets_values"]]  # fmt: skip
    for name in chosen - NOT_BY_NAME:
        named = [sampling.names.preset_by_name(file, family, is_lora)
                 for file, is_lora in files for family in rows[name].backbones]  # fmt: skip
        assert name in [found.row.name for found in named if found.row and not found.word]
