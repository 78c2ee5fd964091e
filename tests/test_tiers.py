"""Every test file has a tier, and needs no more than that tier has."""

import ast
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
STARTS_COMFYUI = ["serve", "server", "pack", "page"]
TORCH = ["torch", "diffusers", "transformers", "accelerate", "peft"]


def test_every_file_has_a_tier_and_the_tables_name_what_is_there():
    assert [path for path in FILES if tier_of(path) not in TIERS] == []
    assert [path for path in TIER_OF if not any(file.startswith(path) for file in FILES)] == []
    assert set(LONGEST) <= set(FILES)
    assert {tier_of(path) for path in FILES} == set(TIERS)


def test_plain_files_pass_where_neither_torch_nor_comfyui_can_be_imported(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(modules=TORCH + COMFYUI))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COMFYUI"))}
    options = ["-q", "--tiers", "plain", "--ignore", "tests/test_tiers.py", "-p", "no:cacheprovider"]
    command = [sys.executable, "-P", "-m", "pytest", "-c", "tests/pytest.ini", "tests", *options]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ran = subprocess.run(command, cwd=TESTS.parent, env=kept | {"PYTHONPATH": str(tmp_path)}, **streams)
    assert ran.returncode == 0, ran.stdout[-3000:]


@pytest.mark.parametrize("path", [path for path in FILES if tier_of(path) in ("torch", "training")])
def test_the_trainers_files_ask_for_no_comfyui(path):
    asked = set()
    for node in ast.walk(ast.parse((TESTS / path).read_text())):
        if isinstance(node, ast.Import):
            asked |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            asked |= {node.module.partition(".")[0], *(alias.name for alias in node.names)}
        elif isinstance(node, ast.arg):
            asked.add(node.arg)  # a fixture
    assert asked.isdisjoint([*COMFYUI, *STARTS_COMFYUI])


def test_an_unknown_tier_is_one_sentence():
    command = [sys.executable, "-P", "-m", "pytest", "-c", "tests/pytest.ini", "tests", "--tiers", "plain,slow"]
    ran = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert ran.returncode == 4 and "slow is no tier; there are plain, torch" in ran.stderr, ran.stderr
