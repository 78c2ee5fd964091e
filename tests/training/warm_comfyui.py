"""A real ComfyUI that is imported once for many exports: each check of `export` runs in a fork of it.

`export` starts ComfyUI's interpreter for each file it checks, and half of a minute of imports is most of its time. The
fixture `warm_comfyui` gives the path of an interpreter for COMFYUI_PYTHON that hands code and arguments on to the fork.
"""

import subprocess
import sys
from pathlib import Path

INTERPRETER = """#!{python} -IS
import os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({address!r})
    told = "\\0".join([os.getcwd(), *sys.argv[2:]])  # behind -c
    socket.send_fds(asked, [f"{{len(told.encode()):9}}".encode()], [1, 2])
    asked.sendall(told.encode())
    sys.exit(int(asked.makefile().read() or 1))
"""
SERVER = """
import os, socket, sys, traceback
address, comfyui = sys.argv[1:]
sys.argv = ["main.py", "--cpu", "--force-fp32", "--fp32-vae", "--fp32-text-enc"]  # as export/in_comfyui.py
sys.path.insert(0, comfyui)
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    while True:
        asked, _ = listening.accept()
        with asked:
            length, files, _, _ = socket.recv_fds(asked, 9, 2)
            folder, code, *arguments = asked.makefile("rb").read(int(length)).decode().split("\\0")
            if not (child := os.fork()):
                for number, file in enumerate(files, start=1):
                    os.dup2(file, number)
                os.chdir(folder)
                sys.argv = ["-c", *arguments]
                status = 1
                try:
                    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
                    status = 0
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            for file in files:
                os.close(file)
            asked.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
"""


class WarmComfyui:
    """interpreter(checkout): the path for COMFYUI_PYTHON. One process a checkout; `stop` ends them."""

    def __init__(self, folder: Path):
        self.folder, self.servers = folder, {}

    def interpreter(self, checkout: Path) -> str:
        path = self.folder / f"python-{len(self.servers)}"
        if checkout not in self.servers:
            address = str(path.with_suffix(".socket"))
            path.write_text(INTERPRETER.format(python=sys.executable, address=address))
            path.chmod(0o755)
            command = [sys.executable, "-c", SERVER, address, str(checkout)]
            server = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True)
            assert server.stdout.readline() == "ready\n"
            self.servers[checkout] = server, str(path)
        return self.servers[checkout][1]

    def stop(self) -> None:
        for server, _ in self.servers.values():
            server.kill()
            server.wait()
