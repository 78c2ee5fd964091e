"""Whatever is in the user's table of presets: the nodes are there, the pack's presets run, a sentence says where."""

import os

import pytest
import torch

ROW = "x:\n  prediction: eps\n  timesteps: [9]\n"


def aliases(depth: int, width: int, row: str) -> str:
    """Each alias holds the one before `width` times."""
    return "".join(row.format(n=n, all=", ".join([f"*a{n - 1}"] * width if n else ["1"])) for n in range(depth))


TABLES = {
    "a mapping of backbones": (ROW + "  backbones: {a: 1}", "line 4, row x, field backbones: {'a': 1} is not one of"),
    "no truth": (ROW + "  alpha: !!bool maybe", "line 4, row x, field alpha: 'maybe' cannot be read as !!bool."),
    "no time": (ROW + "  source: !!timestamp abc", "line 4, row x, field source: 'abc' cannot be read as !!timestamp."),
    "no date": (ROW + "  source: 2001-99-99", "line 4, row x, field source: '2001-99-99' cannot be read as !!time"),
    "no number": (ROW + "  alpha: !!float abc", "line 4, row x, field alpha: 'abc' cannot be read as !!float."),
    "a tag of Python": (ROW + "  model: !!python/object/apply:os.system [id]", "line 4, row x, field model: what"),
    "a key that is a list": (ROW + "  model: {[a]: b}", "line 4, row x, field model: what stands there cannot be read"),
    "a number of 10,000 digits": (ROW + f"  alpha: {'9' * 10_000}", "line 4, row x, field alpha: '9999"),
    "a number above all": (ROW + f"  alpha: {'9' * 400}", "line 4, row x, field alpha: 9999"),
    "minutes of minutes": (ROW + f"  alpha: {'59:' * 9_000}1.5", "line 4, row x, field alpha: '59:59"),
    "a row in itself": ("x: &x\n  prediction: *x", "line 2, row x, field prediction: it holds itself"),
    "a list in itself": (ROW + "  files: &f [*f]", "line 4, row x, field files: it holds itself"),
    "a bomb of aliases": (aliases(9, 9, "a{n}: &a{n} [{all}]\n"), "line 6, row a5, field a5: it holds itself, or more"),
    "a bomb of merges": (aliases(9, 9, "a{n}: &a{n} {{k: 1, <<: [{all}]}}\n").replace("<<: [1]", "b: 1"),
                         "field <<: it holds itself, or more"),
    "a bomb in a field": (ROW + "  files: [" + aliases(9, 9, "&a{n} [{all}], ") + "]", "line 4, row x, field files"),
    "deep nesting": (ROW + "  files: " + "[" * 5_000, "line 4, row x, field files: it is nested deeper than 8 levels."),
    "deep mappings": ("\n".join(" " * n + "a:" for n in range(400)), "line 8, row a, field a: it is nested deeper"),
    "a huge file": ("# " + "x" * 300_000, "is no table of presets: it has 300002 bytes"),
    "NUL": (ROW + "  model: a\0b", "line 4: the character 0x0 is not allowed."),
    "UTF-16": ((ROW + "  model: a").encode("utf-16"), "line 1: it is not UTF-8 text."),
    "Latin-1": ((ROW + "  model: café").encode("latin-1"), "line 4: it is not UTF-8 text."),
    "a surrogate": (ROW + '  noise: "\\ud800"', r"line 4, row x, field noise: '\ud800' is not one of"),
    "HTML": (f'"<b>":{ROW[2:]}', "line 1: the row <b> has < or > in its name: take them out."),
    "a tab": ("x:\n\tprediction: eps", "line 2, row x: found character '\\t' that cannot start any token."),
    "a long word": (ROW + f"  noise: {'v' * 100_000}", "line 4, row x, field noise: 'vvvv"),
    "a long name": (f"{'n' * 500}: {{prediction: 1}}", "line 1, row nnnn"),
}  # fmt: skip


@pytest.fixture
def refused(pack, sampling, model, text, run):
    """refused() -> the sentence of a run that would need the table; all else works without it."""

    def refused():
        for node in pack.nodes.NODES:
            options = [widget.options for widget in node.FINALIZE_SCHEMA().inputs if widget.id == "preset"]
            assert options in ([], [["auto", *sampling.presets.read_presets()]])
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        with pytest.raises(ValueError) as error:
            run(model, text(1), latent, preset="auto")
        named = sampling.one_step_sampler_node.SNOOPIOneStepSampler.execute(model, text(1), latent, 5, "sid-lsg").args
        assert torch.isfinite(named[0]["samples"]).all()
        sentence = str(error.value)
        assert len(sentence) <= 600 and sentence.isprintable() and sentence.endswith(".")
        assert sentence[:60] in named[1] and len(named[1]) <= 600  # said on the node that ran
        return sentence

    return refused


@pytest.mark.parametrize("name", TABLES)
def test_b13_whatever_is_in_the_table(sampling, user_rows, refused, name):
    table, place = TABLES[name]
    user_rows("")
    path = sampling.presets.user_path()
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    sentence = refused()
    assert sentence.startswith(str(path)) and place in sentence


@pytest.mark.parametrize(
    "make, sentence",
    [
        (os.mkdir, "is not a file: move it away"),
        (os.mkfifo, "is not a file: move it away"),
        (lambda path: os.symlink("nowhere", path), "cannot be read: No such file or directory."),
    ],
    ids=["a folder", "a pipe", "a link to nothing"],
)
def test_b13_whatever_the_table_is(sampling, user_rows, refused, make, sentence):
    user_rows("")
    path = sampling.presets.user_path()
    path.unlink()
    make(path)
    assert refused() == f"{path} {sentence}" or sentence in refused()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs a user whose rights can be dropped")
def test_b13_a_table_that_may_not_be_read(sampling, user_rows):
    user_rows(ROW)
    path = sampling.presets.user_path()
    path.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match="cannot be read: Permission denied.$"):
            sampling.presets.all_presets()
        assert sampling.presets.find_preset("sd")
    finally:
        os.seteuid(0)
