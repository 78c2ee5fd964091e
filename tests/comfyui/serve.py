"""A real ComfyUI server on the CPU, with this pack in a base directory of its own."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from comfyui.client import Client, Unreachable

PACK = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or PACK / "build" / "comfyui").resolve()
FOLDERS = ("custom_nodes", "models/checkpoints", "input", "output", "user", "temp")
OPTIONS = {  # those that this ComfyUI does not know yet are left out
    "--disable-auto-launch": [],
    "--disable-api-nodes": [],
    "--database-url": ["sqlite:///:memory:"],
}
STARTS_WITHIN = 600  # seconds; a dozen on a machine with nothing else to do


def prepare(base: Path, nodes: tuple[Path, ...] = (), has_pack: bool = True) -> None:
    """Make a ComfyUI base directory that holds this pack and the node packs ``nodes`` as symbolic links."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    links = ({"ComfyUI-SNOOPI": PACK} if has_pack else {}) | {folder.name: folder for folder in nodes}
    for name, target in links.items():
        link = base / "custom_nodes" / name
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve(), target_is_directory=True)


def free_port() -> int:
    """A port below those that the system gives to outgoing connections: the server takes it seconds later."""
    for port in random.SystemRandom().sample(range(15_000, 32_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("No port of 100 between 15000 and 32000 is free.")


def command(base: Path, port: int, options: dict[str, list[str]]) -> list[str]:
    known = (COMFYUI / "comfy" / "cli_args.py").read_text()
    options = [word for name, values in options.items() if f'"{name}"' in known for word in (name, *values)]
    where = ["--base-directory", str(base.resolve()), "--port", str(port)]
    return [sys.executable, str(COMFYUI / "main.py"), "--cpu", *where, *options]


@contextmanager
def serve(
    base: Path, nodes: tuple[Path, ...] = (), options: dict[str, list[str]] | None = None, has_pack: bool = True
) -> Iterator[Client]:
    """Run a server over the base directory ``base`` until the block ends, however it ends.

    ``nodes`` are folders of further node packs, ``options`` further options of main.py with their values; without
    ``has_pack`` it is a ComfyUI as others have it.

    Raises RuntimeError with the log's traceback if the server does not start or does not load this pack.
    """
    prepare(base, nodes, has_pack)
    port, log = free_port(), base / "server.log"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # ours holds a nodes/
    with log.open("w") as file:
        process = subprocess.Popen(
            command(base, port, OPTIONS | (options or {})),
            cwd=base,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        client = Client(f"http://127.0.0.1:{port}", process.pid)
        wait_until_ready(client, process, log)
        if has_pack and not client.object_info("NASACrossAttentionPatch"):
            raise RuntimeError(f"The server runs but did not load this pack.\n{traceback_in(log)}")
        yield client
    finally:
        stop(process)


def wait_until_ready(client: Client, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        try:
            client.system_stats()
            return
        except Unreachable:
            time.sleep(0.1)
    state = "ended" if process.poll() is not None else f"did not answer within {STARTS_WITHIN} s"
    raise RuntimeError(f"The ComfyUI server {state}.\n{traceback_in(log)}")


def traceback_in(log: Path) -> str:
    """The log from its last traceback on, or its last lines."""
    lines = log.read_text(errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    shown = lines[starts[-1] :][:40] if starts else lines[-20:]
    return "\n".join([*shown, f"(the whole log: {log})"])


def stop(process: subprocess.Popen) -> None:
    """End the server and whatever it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
