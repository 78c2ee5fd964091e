"""One picture through SNOOPIOneStepSampler against one through a stock one-step KSampler, taken in turns.

    python -P tests/benchmarks/one_step.py [--width 128] [--size 32] [--pairs 40] [--gpu]

A UNet of SD 1.5's layout with random weights. Prints the median time of each and of the ratios of neighbours; the bar
is 1.02. --width 320 is the real width.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
from pathlib import Path

PACK = Path(__file__).parents[2]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--width", type=int, default=128, help="model channels; SD 1.5 has 320")
parser.add_argument("--size", type=int, default=32, help="latent height and width")
parser.add_argument("--pairs", type=int, default=40, help="how many times each is run")
parser.add_argument("--gpu", action="store_true", help="run where ComfyUI would")
arguments = parser.parse_args()

sys.path.insert(0, os.environ.get("COMFYUI_PATH") or str(PACK / "build" / "comfyui"))
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
sys.argv = ["benchmark"] if arguments.gpu else ["benchmark", "--cpu"]

import comfy.cli_args  # noqa: E402, F401
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402

comfy.utils.PROGRESS_BAR_ENABLED = False
name = str(PACK).replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
sys.modules[name] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
Sampler = importlib.import_module(f"{name}.nodes.one_step_sampler").SNOOPIOneStepSampler

config = comfy.supported_models.SD15({
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": arguments.width, "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True, "legacy": False,
    "context_dim": 768, "use_linear_in_transformer": False, "dtype": torch.float32,
})  # fmt: skip
config.set_inference_dtype(torch.float32, None)
device = comfy.model_management.get_torch_device()
network = config.get_model({}, "", device=device)
for parameter in network.parameters():
    torch.nn.init.normal_(parameter.requires_grad_(False), std=0.02)
model = comfy.model_patcher.ModelPatcher(network, device, device)
positive = [[torch.randn(1, 77, 768), {}]]
latent = {"samples": torch.zeros(1, 4, arguments.size, arguments.size)}


def ours(seed: int):
    return Sampler.execute(model, positive, latent, seed, "auto").args[0]["samples"]


def stock(seed: int):
    return nodes.common_ksampler(model, seed, 1, 1.0, "euler", "simple", positive, positive, latent)[0]["samples"]


def timed(run, seed: int) -> float:
    start = time.perf_counter()
    run(seed)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


with torch.inference_mode():
    assert torch.equal(ours(0), stock(0))
    pairs = []
    for seed in range(arguments.pairs):  # the order changes from pair to pair
        if seed % 2:
            pairs.append((timed(ours, seed), timed(stock, seed)))
        else:
            pairs.append(tuple(reversed((timed(stock, seed), timed(ours, seed)))))

ratios = sorted(ours / stock for ours, stock in pairs)
print(f"ours  {1000 * statistics.median(ours for ours, _ in pairs):.1f} ms")
print(f"stock {1000 * statistics.median(stock for _, stock in pairs):.1f} ms")
quarter = len(ratios) // 4
print(f"ratio {statistics.median(ratios):.4f}, middle half {ratios[quarter]:.4f} to {ratios[-1 - quarter]:.4f}")
