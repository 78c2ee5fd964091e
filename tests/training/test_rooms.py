"""The trainer's rooms, as CONTRIBUTING.md draws them: no import goes up; and what keeps a room readable."""

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


LONGEST, DEEPEST = 80, 4  # lines of a function; indents of a statement
FUNCTIONS = [
    (path.relative_to(TRAINING), node)
    for path in sorted(TRAINING.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
]


def test_no_function_in_training_is_longer_than_80_lines_or_has_more_than_four_indents():
    assert len(FUNCTIONS) > 300
    lines_of = {path: (TRAINING / path).read_text().splitlines() for path, _ in FUNCTIONS}
    for path, function in FUNCTIONS:
        lines = function.end_lineno - function.lineno + 1
        assert lines <= LONGEST, f"{path}: {function.name} has {lines} lines"
        for node in ast.walk(function):
            if isinstance(node, ast.stmt):
                line = lines_of[path][node.lineno - 1]
                indents = (len(line) - len(line.lstrip())) / 4
                assert indents <= DEEPEST, f"{path}, line {node.lineno}: more than {DEEPEST} indents"


def test_the_config_goes_whole_to_nobody_who_needs_three_of_its_settings():
    """Who takes a Config outside its own room reads at least four of its settings, or hands all of it on."""
    takers = []
    for path, function in (found for found in FUNCTIONS if found[0].parts[0] != "recipe"):
        for argument in function.args.args:
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            if kind.strip("\"'").rpartition(".")[2] != "Config":
                continue
            inside = list(ast.walk(function))
            read = [node for node in inside if isinstance(node, ast.Attribute) and _is(node.value, argument.arg)]
            named = sum(_is(node, argument.arg) for node in inside)
            settings = {node.attr for node in read}
            assert len(settings) > 3 or named > len(read), f"{path}: {function.name} needs {sorted(settings)} alone"
            takers.append(function.name)
    assert len(takers) > 10


def _is(node, name):
    return isinstance(node, ast.Name) and node.id == name
