"""Every test file has a tier, and needs no more than that tier has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiers import LONGEST, TIER_OF, TIERS, tier_of

TESTS = Path(__file__).parent
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))
#: Python's sitecustomize: these modules cannot be imported, in no process that a test starts either.
WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Without())
"""
COMFYUI = ["comfy", "comfy_extras", "comfy_api", "folder_paths", "nodes", "playwright"]
TORCH = ["torch", "diffusers", "transformers", "accelerate", "peft"]


def test_every_file_has_a_tier_and_the_tables_name_what_is_there():
    assert [path for path in FILES if tier_of(path) not in TIERS] == []
    assert [path for path in TIER_OF if not any(file.startswith(path) for file in FILES)] == []
    assert set(LONGEST) <= set(FILES)
    assert {tier_of(path) for path in FILES} == set(TIERS)


@pytest.mark.parametrize(
    ("tiers", "without", "options"),
    [("plain", TORCH + COMFYUI, []), ("torch,training", COMFYUI, ["--collect-only"])],
    ids=["plain", "torch"],
)
def test_a_tier_needs_no_more_than_it_says(tmp_path, tiers, without, options):
    """The plain one is run; of the others it is known that their files import no ComfyUI."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(modules=without))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COMFYUI"))}
    command = ["-m", "pytest", "-c", "tests/pytest.ini", "tests", "-q", "--tiers", tiers, *options]
    this = ["--ignore", "tests/test_tiers.py", "-p", "no:cacheprovider"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = kept | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-P", *command, *this], cwd=TESTS.parent, env=environment, **streams)
    assert ran.returncode == 0, ran.stdout[-3000:]


def test_an_unknown_tier_is_one_sentence():
    command = [sys.executable, "-P", "-m", "pytest", "-c", "tests/pytest.ini", "tests", "--tiers", "plain,slow"]
    ran = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert ran.returncode == 4 and "slow is no tier; there are plain, torch" in ran.stderr, ran.stderr
