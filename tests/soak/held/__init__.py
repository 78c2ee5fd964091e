"""A route for the soak: GET /soak/held gives the MB that the server holds once its worker has done what POST /free
asks for, garbage is collected, and the C library has handed back what was freed: else a heap in pieces looks like
memory that someone holds, and so does a model that a busy server has not come to unload."""

import asyncio
import ctypes
import gc
from pathlib import Path

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


@PromptServer.instance.routes.get("/soak/held")
async def held(request):
    while PromptServer.instance.prompt_queue.flags:  # what is asked for, until the worker takes it
        await asyncio.sleep(0.5)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return web.Response(text=str(int(status.split("VmRSS:")[1].split()[0]) / 1024))
