"""`make soak`: many prompts on a real ComfyUI with the pack, and as many stock ones on one without it.

After each tenth of them both are told to free their memory (POST /free) and measured (held/). Fails if the server with
the pack grows by over 2 MB per 100 prompts more than the other, or if its pictures at the end are not those of the
beginning.
"""

import argparse
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from comfyui.client import Client, Refused
from comfyui.serve import PACK, serve

FOLDER = PACK / "build" / "soak"
HELD = Path(__file__).with_name("held")  # a node pack of one route
CHECKPOINT = "snoopi-shapes.safetensors"
ALLOWED = 2.0  # MB per 100 prompts
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle")


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(number: int, sampler: dict[str, dict]) -> dict:
    """A picture of the untrained demo model; `sampler` makes node "latent" of model, text and latent."""
    tenth = number // 10  # texts stay for ten prompts: encoding them takes longer than all else
    words = f"a {COLOURS[tenth % 4]} {SHAPES[tenth % 3]}"
    return {
        "file": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "positive": node("CLIPTextEncode", clip=["file", 1], text=f"{words} {tenth % 17}"),
        "negative": node("CLIPTextEncode", clip=["file", 1], text=f"{SHAPES[tenth % 2]} {tenth}"),
        "empty": node("EmptyLatentImage", width=32, height=32, batch_size=1 + number % 2),
        "picture": node("VAEDecode", samples=["latent", 0], vae=["file", 2]),
        "shown": node("PreviewImage", images=["picture", 0]),
    } | sampler


def stock(number: int) -> dict:
    texts = {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["empty", 0]}
    kind = node("KSampler", model=["file", 0], seed=number, steps=1 + number % 2, cfg=1.0, sampler_name="euler",
                scheduler="simple", denoise=1.0, **texts)  # fmt: skip
    return graph(number, {"latent": kind})


def ours(number: int) -> dict:
    """Each of the nodes in turn, with other values every time."""
    alpha, preset = 0.1 * (number % 11), ("auto", "sid-lsg", "lcm", "snoopi-shapes")[number % 4]
    texts = {"positive": ["positive", 0], "latent_image": ["empty", 0]}
    patch = node("NASACrossAttentionPatch", model=["file", 0], negative=["negative", 0], alpha=alpha, start_percent=0.0,
                 end_percent=1.0, blocks="all", norm_limit=2.5 * (number % 2), name="")  # fmt: skip
    inside = {"negative": ["negative", 0], "alpha": alpha, "denoise": 1.0, "preset": preset, "seed": number}
    outside = node("SNOOPIModelSampling", model=["patch", 0], preset="snoopi-shapes")
    stock_sampler = {"seed": number, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
                     "denoise": 1.0, "negative": ["negative", 0]}  # fmt: skip
    match number % 5:
        case 0:
            sampler = {"latent": node("SNOOPIOneStepSampler", model=["file", 0], **inside, **texts)}
        case 1:
            inside = {"preset": preset, "seed": number, "denoise": 1.0}
            sampler = {"patch": patch, "latent": node("SNOOPIOneStepSampler", model=["patch", 0], **inside, **texts)}
        case 2:
            sampler = {"patch": patch, "model": outside}
            sampler["latent"] = node("KSampler", model=["model", 0], **stock_sampler, **texts)
        case 3:
            loader = node("SNOOPICheckpointLoader", model_name=f"checkpoints/{CHECKPOINT}", preset="auto")
            sampler = {"ours": loader, "latent": node("SNOOPIOneStepSampler", model=["ours", 0], **inside, **texts)}
        case 4:
            sigmas = node("SNOOPIOneStepScheduler", model=["patch", 0], preset="lcm", denoise=1.0)
            sampler = {
                "patch": patch, "sigmas": sigmas, "kind": node("KSamplerSelect", sampler_name="lcm"),
                "latent": node("SamplerCustom", model=["patch", 0], add_noise=True, noise_seed=number, cfg=1.0,
                               positive=["positive", 0], negative=["negative", 0], sampler=["kind", 0],
                               sigmas=["sigmas", 0], latent_image=["empty", 0]),
            }  # fmt: skip
    return graph(number, sampler)


def bad(number: int) -> dict:
    """A prompt that fails, which must leave nothing behind either."""
    prompt = ours(5 * number + 1)
    prompt["patch"]["inputs"]["blocks"] = f"in{number + 90}"
    return prompt


def run_ours(client: Client, numbers: range) -> int:
    """How many bad prompts were refused among them."""
    refused = 0
    for number in numbers:
        client.run(ours(number))
        if number % 10 == 9:
            try:
                client.run(bad(number))
            except Refused:
                refused += 1
    return refused


def run_stock(client: Client, numbers: range) -> None:
    for number in numbers:
        client.run(stock(number))


def megabytes(*clients: Client) -> list[float]:
    """What each server holds after it was told to free all it can and has settled."""
    for client in clients:
        client.request("free", {"unload_models": True, "free_memory": True})
    return [settled(client) for client in clients]


def settled(client: Client) -> float:
    """MB, once they stay the same."""
    found = [float(client.request("soak/held"))]
    while len(found) < 4 or max(found[-4:]) - min(found[-4:]) > 1:
        time.sleep(4)
        found.append(float(client.request("soak/held")))
    return found[-1]


def pictures(client: Client) -> list[np.ndarray]:
    return [shown for number in range(5) for shown in client.run(ours(number)).pictures.values()]


def growth(held: tuple[float, ...], prompts: int) -> float:
    """MB per 100 prompts, the line of least squares; the first measurement is left out."""
    return float(np.polyfit(np.arange(len(held) - 1) * prompts / 100, held[1:], 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument(
        "--prompts", type=int, default=1000, help="how many on each server; at least 40 (default: 1000)"
    )
    prompts = max(40, parser.parse_args().prompts)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    checkpoint = FOLDER / CHECKPOINT
    subprocess.run(
        [sys.executable, "-m", "training.shapes", "checkpoint", "--untrained", checkpoint], cwd=PACK, check=True
    )
    with ExitStack() as stack:
        clients = {}
        for name, has_pack in (("with the pack", True), ("without it", False)):
            models = FOLDER / name / "models" / "checkpoints"
            models.mkdir(parents=True)
            (models / CHECKPOINT).symlink_to(checkpoint)
            clients[name] = stack.enter_context(serve(FOLDER / name, (HELD,), has_pack=has_pack))
        ours_client, stock_client = clients.values()
        before = pictures(ours_client)
        each, held, refused = prompts // 10, [], 0
        both = stack.enter_context(ThreadPoolExecutor(2))
        print(f"{'prompts':>8} {'with the pack':>14} {'without it':>11}   MB held after POST /free", flush=True)
        for done in range(0, prompts, each):
            numbers = range(done, min(done + each, prompts))
            beside = both.submit(run_stock, stock_client, numbers)
            refused += run_ours(ours_client, numbers)
            beside.result()
            held.append(megabytes(ours_client, stock_client))
            print(f"{numbers[-1] + 1:>8} {held[-1][0]:>14.1f} {held[-1][1]:>11.1f}", flush=True)
        after = pictures(ours_client)
    grown = [growth(values, each) for values in zip(*held, strict=True)]
    same = all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    is_fine = same and grown[0] - grown[1] <= ALLOWED and refused == prompts // 10
    print(
        f"growth   {grown[0]:>14.2f} {grown[1]:>11.2f}   MB per 100 prompts; allowed is {ALLOWED} more than without it"
    )
    print(f"The pictures after it are {'the same' if same else 'NOT THE SAME'}; {refused} bad prompts were refused.")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
