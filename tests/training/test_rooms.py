"""The trainer's rooms, as CONTRIBUTING.md draws them: no import goes up."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAINING = ROOT / "training"


def test_nothing_in_training_imports_upward():
    drawn = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    rooms = [line.split()[0] for line in drawn.splitlines()]
    there = {path.stem for path in TRAINING.glob("*.py")} | {
        path.parent.name for path in TRAINING.glob("*/__init__.py")
    }
    assert set(rooms) == there - {"__init__"}
    for path in TRAINING.rglob("*.py"):
        place = path.relative_to(TRAINING).parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == len(place):
                for name in [node.module.split(".")[0]] if node.module else [one.name for one in node.names]:
                    own = place[0].removesuffix(".py")
                    if name in rooms and own in rooms:
                        assert rooms.index(name) >= rooms.index(own), f"{path} imports {name}"
