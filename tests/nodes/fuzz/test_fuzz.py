"""Drawn cases through a real ComfyUI: each ends in one sentence or a finite picture, and a good prompt stays bit-same.

`make fuzz` draws 1,200 of them; a test run fewer. FUZZ_CASES and FUZZ_SEED say how many, and from where.
"""

import asyncio
import json
import logging
import os
import random
import struct
from collections import Counter
from types import SimpleNamespace

import draws
import pytest
import torch

CASES = int(os.environ.get("FUZZ_CASES") or 120)
SEED = int(os.environ.get("FUZZ_SEED") or 0)
SHARES = {"inputs": 4, "positive": 3, "negative": 3, "latent": 4, "model_file": 4, "metadata": 3, "table": 3}
LONGEST = 600
WIDTH = 24


class Values:
    """What a drawn graph reads, by key: a CONDITIONING, a LATENT, and so on."""

    found = {}


def source(kind):
    """A node of ComfyUI's first kind whose output is a value of `Values`."""
    methods = {
        "INPUT_TYPES": classmethod(lambda cls: {"required": {"key": ("STRING", {})}}),
        "IS_CHANGED": classmethod(lambda cls, key: float("nan")),  # never from the cache
        "get": lambda self, key: (Values.found[key],),
        "RETURN_TYPES": (kind,), "FUNCTION": "get", "CATEGORY": "fuzz",
    }  # fmt: skip
    return type(f"Fuzz{kind}", (), methods)


class Keep:
    """An output node that keeps what reaches it."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "fuzz", True
    kept = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {},
            "optional": {"latent": ("LATENT",), "model": ("MODEL",), "info": ("STRING", {"forceInput": True})},
        }

    def keep(self, **values):
        Keep.kept.update(values)
        return ()


@pytest.fixture(scope="module")
def comfyui(pack, tmp_path_factory):
    """run(prompt, node_id of the output) -> (error sentence or None, what was kept), by ComfyUI's own executor."""
    import execution
    import folder_paths

    import nodes

    added = {f"Fuzz{kind}": source(kind) for kind in ("MODEL", "CONDITIONING", "LATENT")} | {"FuzzKeep": Keep}
    added |= {node.GET_SCHEMA().node_id: node for node in pack.nodes.NODES}
    base = tmp_path_factory.mktemp("fuzz")
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_, **__: None)
    executor = execution.PromptExecutor(
        server, execution.CacheType.CLASSIC, {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    )

    def run(prompt):
        Keep.kept.clear()
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("fuzz", prompt, None))
        if not valid:
            told = json.dumps([error, node_errors], default=str)
            assert str(pack.root.__path__[0] if hasattr(pack.root, "__path__") else "ComfyUI-SNOOPI") not in told, told
            return "refused by ComfyUI", {}
        executor.execute(prompt, "fuzz", {}, outputs)
        failures = [message for kind, message in executor.status_messages if kind == "execution_error"]
        return (failures[0] if failures else None), dict(Keep.kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "NODE_CLASS_MAPPINGS", nodes.NODE_CLASS_MAPPINGS | added)
        patch.setattr(folder_paths, "user_directory", str(base))
        for folder in ("checkpoints", "diffusion_models"):
            (base / folder).mkdir()
            patch.setitem(folder_paths.folder_names_and_paths, folder, ([str(base / folder)], {".safetensors"}))
        patch.setattr(folder_paths, "filename_list_cache", {})
        logging.disable(logging.CRITICAL)
        yield SimpleNamespace(run=run, base=base, table=base / "snoopi_presets.yaml")
        logging.disable(logging.NOTSET)


def link(node):
    return [node, 0]


def sampler_graph(inputs, patched):
    """Model, text and latent from `Values`; NASA as a patch, or inside the sampler."""
    take = lambda *names: {name: inputs[name] for name in names}  # noqa: E731
    sampler = take("seed", "preset", "denoise") | {
        "model": link("patch" if patched else "model"), "positive": link("positive"), "latent_image": link("latent"),
    }  # fmt: skip
    patch = take("alpha", "start_percent", "end_percent", "blocks", "norm_limit", "name") | {
        "model": link("model"), "negative": link("negative"),
    }  # fmt: skip
    prompt = {
        "model": {"class_type": "FuzzMODEL", "inputs": {"key": "model"}},
        "latent": {"class_type": "FuzzLATENT", "inputs": {"key": "latent"}},
        "positive": {"class_type": "FuzzCONDITIONING", "inputs": {"key": "positive"}},
        "negative": {"class_type": "FuzzCONDITIONING", "inputs": {"key": "negative"}},
        "sampler": {"class_type": "SNOOPIOneStepSampler", "inputs": sampler},
        "keep": {"class_type": "FuzzKeep", "inputs": {"latent": link("sampler"), "info": ["sampler", 1]}},
    }
    if patched:
        prompt["patch"] = {"class_type": "NASACrossAttentionPatch", "inputs": patch}
    else:
        sampler |= take("alpha") | {"negative": link("negative")}
    return prompt


def file_graph(name, preset="auto"):
    return {
        "load": {"class_type": "SNOOPICheckpointLoader", "inputs": {"model_name": name, "preset": preset}},
        "sampling": {"class_type": "SNOOPIModelSampling", "inputs": {"model": link("load"), "preset": preset}},
        "keep": {"class_type": "FuzzKeep", "inputs": {"model": link("sampling"), "info": ["sampling", 1]}},
    }


GOOD = {"seed": 3, "preset": "sid-lsg", "alpha": 0.5, "denoise": 1.0, "start_percent": 0.0, "end_percent": 1.0,
        "blocks": "all", "norm_limit": 0.0, "name": ""}  # fmt: skip


def text(seed):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 77, WIDTH, generator=generator), {"pooled_output": torch.zeros(1, 8)}]]


@pytest.fixture(scope="module")
def good(comfyui, models):
    """good() -> the picture of a prompt that nothing is wrong with."""

    def good():
        Values.found = {"model": models["SD 1.5"], "latent": {"samples": torch.zeros(2, 4, 8, 8)}, "positive": text(1),
                        "negative": text(2)}  # fmt: skip
        for patched in (True, False):
            failure, kept = comfyui.run(sampler_graph(GOOD, patched))
            assert failure is None, failure
        return kept["latent"]["samples"]

    return good


@pytest.fixture(scope="module")
def model_of_zeros(comfyui):
    """write(name, metadata): a PixArt of one block, all zeros, in a file with holes that takes no space."""
    import comfy.ops
    from comfy.ldm.pixart.pixartms import PixArtMS

    network = PixArtMS(depth=1, micro_condition=False, model_max_length=120, dtype=torch.float16,
                       device="meta", operations=comfy.ops.disable_weight_init)  # fmt: skip
    header, end = {}, 0
    for key, value in network.state_dict().items():
        header[key] = {
            "dtype": "F16",
            "shape": list(value.shape),
            "data_offsets": [end, end := end + 2 * value.numel()],
        }

    def write(path, metadata):
        content = draws.safetensors({"__metadata__": metadata} | header)
        with open(path, "wb") as file:
            file.write(content)
            file.truncate(len(content) + end)
        assert struct.unpack("<Q", content[:8])[0] < len(content)

    return write


def case(kind, rng, comfyui, models, model_of_zeros):
    """Draw a case and run it: its failure or None, what was kept."""
    Values.found = {"model": models["SD 1.5"], "latent": {"samples": torch.zeros(1, 4, 8, 8)}, "positive": text(1),
                    "negative": text(2)}  # fmt: skip
    inputs, patched = dict(GOOD), rng.random() < 0.5
    folder = rng.choice(("checkpoints", "diffusion_models"))
    comfyui.table.unlink(missing_ok=True)
    match kind:
        case "inputs":
            inputs = draws.inputs(rng)
        case "positive" | "negative":
            Values.found[kind] = draws.conditioning(rng, WIDTH)
        case "latent":
            Values.found[kind] = draws.latent(rng)
        case "table":
            comfyui.table.write_bytes(draws.table(rng))
            inputs["preset"] = rng.choice(("auto", "sid-lsg", "x"))
        case "model_file":
            name, content = draws.model_file(rng)
            path = comfyui.base / folder / name
            path.write_bytes(content)
        case "metadata":
            path = comfyui.base / folder / rng.choice(("m.safetensors", "pixart-dmd.safetensors", "<b>.sft"))
            model_of_zeros(path, draws.metadata(rng))
    if kind not in ("model_file", "metadata"):
        return comfyui.run(sampler_graph(inputs, patched))
    try:
        return comfyui.run(file_graph(f"{folder}/{path.name}"))
    finally:
        path.unlink()


def check(failure, kept):
    """Why the end of a case is none of those allowed; empty if it is."""
    if failure is None:
        info = kept.get("info", "")
        if not isinstance(info, str) or len(info) > LONGEST or set(info) & set("<>") or not info.isprintable():
            return f"what is shown on the node: {info!r}"
        if "latent" in kept and not torch.isfinite(kept["latent"]["samples"]).all():
            return "a picture that is not finite"
        return ""
    if isinstance(failure, str):
        return ""
    sentence = failure["exception_message"].strip()
    if failure["exception_type"] != "ValueError" or failure["node_type"].startswith("Fuzz"):
        return (
            f"{failure['node_type']}: {failure['exception_type']}: {sentence[:300]} {failure['traceback'][-1].strip()}"
        )
    if len(sentence) > LONGEST or not sentence.isprintable() or not sentence.endswith("."):
        return f"the sentence: {sentence!r}"
    return ""


@pytest.mark.parametrize("kind", SHARES)
def test_fuzz(comfyui, good, models, model_of_zeros, kind):
    weights = {name: value.clone() for name, value in models["SD 1.5"].model.state_dict().items()}
    expected, wrong, ends = good(), {}, Counter()
    count = -(-CASES * SHARES[kind] // sum(SHARES.values()))
    for number in range(SEED, SEED + count):
        failure, kept = case(kind, random.Random(f"{kind} {number}"), comfyui, models, model_of_zeros)
        ends["a picture" if failure is None else "ComfyUI's no" if isinstance(failure, str) else "a sentence"] += 1
        if trouble := check(failure, kept):
            wrong[number] = trouble
        if number % 50 == 49:
            assert torch.equal(good(), expected), f"the good picture changed at {number} or before"
    comfyui.table.unlink(missing_ok=True)
    assert torch.equal(good(), expected)
    assert all(torch.equal(value, weights[name]) for name, value in models["SD 1.5"].model.state_dict().items())
    print(f"{kind}: {count} cases, {len(wrong)} wrong; {dict(ends)}")
    assert not wrong, "\n".join(f"{kind} {number}: {trouble}" for number, trouble in wrong.items())
