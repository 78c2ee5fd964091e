"""A real ComfyUI in this process, on the first GPU or else the CPU, and the pack, loaded as ComfyUI loads it."""

import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch

PACK = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or PACK / "build" / "comfyui").resolve()


def start_comfyui(pytorch_attention: bool) -> None:
    """Make `import comfy` work; call it before any such import.

    Args:
        pytorch_attention: have attention done by torch's scaled_dot_product_attention, which is ComfyUI's default on an
            NVIDIA GPU; else by what ComfyUI takes by default.
    """
    sys.path.insert(0, str(COMFYUI))
    import comfy.options

    comfy.options.enable_args_parsing()
    options = ["--base-directory", tempfile.mkdtemp(prefix="comfyui-")]
    options += [] if torch.cuda.is_available() else ["--cpu"]
    options += ["--use-pytorch-cross-attention"] if pytorch_attention else []
    argv, sys.argv = sys.argv, [sys.argv[0], *options]
    import comfy.cli_args  # noqa: F401  reads sys.argv

    sys.argv = argv


def comfyui_version() -> str:
    spec = importlib.util.spec_from_file_location("comfyui_version", COMFYUI / "comfyui_version.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.__version__


def load_pack() -> ModuleType:
    """The pack's nodes.guidance.payload, loaded as in ComfyUI's nodes.load_custom_node."""
    name = str(PACK).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return importlib.import_module(f"{name}.nodes.guidance.payload")
