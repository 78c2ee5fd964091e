"""Fresh environments and what a fresh checkout has: what a stranger begins with."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from comfyui.serve import PACK


def tracked() -> list[str]:
    """The files that a clone of this working tree would have, relative to it."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=PACK, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (PACK / name).is_file()]


def make_environment(folder: Path, empty: bool = False, with_pip: bool = False) -> Path:
    """bin/ of a new virtual environment which sees the packages of the one that runs this, unless it is to be empty."""
    venv.create(folder, with_pip=with_pip, symlinks=True)
    if not empty:
        below = [path for path in sys.path if path.endswith("-packages")]
        (site,) = folder.glob("lib/python*/site-packages")
        lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in below)
        (site / "below.pth").write_text(lines)
    return folder / "bin"


def clean(programs: Path, **values: str) -> dict[str, str]:
    """The environment variables of a shell in which that virtual environment is active."""
    # What the make and the pytest of the tests hand on would change those that they start.
    foreign = ("PYTHON", "PYTEST", "COMFYUI", "MAKE", "MFLAGS")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "VIRTUAL_ENV": str(programs.parent), "HF_HUB_OFFLINE": "1"} | values


def install(wheel: Path, programs: Path) -> Path:
    """Puts the wheel alone into an environment; returns `programs`."""
    options = ["--python", str(programs / "python"), "install", "-q", "--no-deps", "--no-index"]
    made = subprocess.run([sys.executable, "-m", "pip", *options, str(wheel)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return programs
