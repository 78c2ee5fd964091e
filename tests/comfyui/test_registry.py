"""What `comfy node pack` puts into the registry's archive: the tracked files that .comfyignore leaves."""

import ast
import re
import subprocess
import tomllib

import pytest

from comfyui.serve import PACK

PROJECT = tomllib.loads((PACK / "pyproject.toml").read_text())["project"]


def tracked(*options):
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=PACK, check=True, capture_output=True, text=True)
    return set(filter(None, listed.stdout.split("\0")))


@pytest.fixture(scope="module")
def packed():
    return tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_archive_holds_everything_that_comfyui_reads(packed):
    folders = ("nodes", "web", "docs", "locales", "workflows", "subgraphs")
    needed = {name for name in tracked(*folders) if not name.startswith("workflows/9")}
    assert needed and needed | {"__init__.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= packed


def test_archive_holds_nothing_that_it_cannot_use(packed):
    assert not [name for name in packed if name.startswith(("tests/", "training/", "build/", "."))]
    graphs = [PACK / name for name in packed if name.startswith("workflows/") and name.endswith(".json")]
    assert len(graphs) >= 10 and not [path for path in graphs if "snoopi-shapes" in path.read_text()]


def test_archive_is_under_10_mb(packed):
    assert sum((PACK / name).stat().st_size for name in packed) < 10_000_000


def test_packed_code_imports_packed_code_only(packed):
    """Relative imports, each of a module that is in the archive too; and no eval, exec or pip, as the registry asks."""
    for name in sorted(name for name in packed if name.endswith(".py")):
        text = (PACK / name).read_text()
        assert not re.search(r"\b(eval|exec)\(|pip install", text), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                folder = (PACK / name).parents[node.level - 1]
                module = folder.joinpath(*node.module.split("."))
                files = {str(path.relative_to(PACK)) for path in (module.with_suffix(".py"), module / "__init__.py")}
                assert files & packed, (name, node.module)


def test_changelog_begins_with_what_comes_next_and_this_version():
    headings = re.findall(r"^## (.+)$", (PACK / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert PROJECT["version"] in headings[:2] and len(headings) == len(set(headings))


def test_no_address_of_the_repository_is_invented():
    """There is none yet. When there is one, pyproject names it, and nothing else does."""
    assert "urls" not in PROJECT
    pages = ("README.md", "docs/*.md", "training/README.md", "web/**/*.md")
    kinds = (*pages, "workflows/*.json", "subgraphs/*.json", "nodes/**/*.py")
    assert not [path for kind in kinds for path in PACK.glob(kind) if "/ComfyUI-SNOOPI.git" in path.read_text()]
    assert not [path for kind in kinds for path in PACK.glob(kind) if "github.com/comfyui-snoopi" in path.read_text()]
