"""The mutations of `mutations.py` fit the code. Whether tests notice them takes minutes and is that file's command."""

from pathlib import Path

from mutations import MUTATIONS

import training


def test_every_mutation_changes_one_place():
    for mutation in MUTATIONS:
        content = (Path(training.__file__).parent / mutation.file).read_text()
        assert content.count(mutation.old) == 1 and mutation.new != mutation.old, mutation.breaks
