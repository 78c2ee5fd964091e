"""What `comfy node pack` puts into the registry's archive: the tracked files that .comfyignore leaves."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from PIL import Image

from comfyui.serve import PACK

PYPROJECT = tomllib.loads((PACK / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
COMFY_CLI = "comfy-cli==1.23.0"


def tracked(*options):
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=PACK, check=True, capture_output=True, text=True)
    return set(filter(None, listed.stdout.split("\0")))


@pytest.fixture(scope="module")
def packed():
    return tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    """Runs `comfy` of comfy-cli in a folder, without a network; it has an environment of its own in build/."""
    environment, home = PACK / "build" / COMFY_CLI, tmp_path_factory.mktemp("home")
    python, installed = environment / "bin" / "python", environment / "installed"
    if not installed.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", COMFY_CLI], check=True)
        installed.touch()

    def run(folder, *words):
        command = [python, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", *words]
        nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        found = nowhere | {"HOME": str(home), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(command, cwd=folder, env=found, text=True, **streams)

    return run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What git tracks, in a repository of its own, where comfy-cli may write its zip."""
    folder = tmp_path_factory.mktemp("checkout")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/"], cwd=PACK, check=True)
    for words in (("init", "--quiet"), ("add", "--all")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def test_comfy_node_validate(comfy, checkout):
    ran = comfy(checkout, "node", "validate")
    assert ran.returncode == 0 and "All validation checks passed" in ran.stdout, ran.stdout
    (checkout / "nodes" / "bad.py").write_text("exec(input())\n")
    ran = comfy(checkout, "node", "validate")
    (checkout / "nodes" / "bad.py").unlink()
    assert "S102" in ran.stdout  # so it does look


def test_comfy_node_pack_makes_a_whole_archive_under_10_mb(comfy, checkout, packed):
    ran = comfy(checkout, "node", "pack")
    assert ran.returncode == 0, ran.stdout
    (archive,) = checkout.glob("*.zip")
    assert archive.stat().st_size < 10_000_000
    with zipfile.ZipFile(archive) as file:
        assert {name for name in file.namelist() if not name.endswith("/")} == packed


def test_icon_and_banner_are_what_the_registry_takes():
    """At most 400 pixels square, and 21 to 9; python -m demo.banner draws them."""
    for name, ratio in (("icon.png", 1), ("banner.png", 21 / 9)):
        path = PACK / "docs" / name
        with Image.open(path) as image:
            assert image.width / image.height == ratio
            assert name == "banner.png" or image.width <= 400
        assert path.stat().st_size < 100_000


def test_icon_and_banner_get_their_address_from_the_repositorys():
    """They are addresses, of which there are none before the repository has one."""
    told, repository = PYPROJECT["tool"]["comfy"], PROJECT.get("urls", {}).get("Repository")
    for key, name in (("Icon", "icon.png"), ("Banner", "banner.png")):
        assert (key in told) == bool(repository)
        assert not repository or told[key] == f"{repository}/raw/main/docs/{name}"


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
