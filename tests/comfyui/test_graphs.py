"""`auto` in many graphs on a real server: it takes the row of the model that came, or says that it cannot know."""

import json
import re
import time
import uuid

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

INSTAFLOW, DMD2, PLAIN = "instaflow_0_9B.safetensors", "dmd2_sd15.safetensors", "some merge.safetensors"
OTHER = "sid-lsg with other weights.safetensors"
LCM, YOSO, STYLE, ENCODER_ONLY = (
    f"{name}.safetensors" for name in ("lcm-lora-sdv1-5", "yoso_sd15_lora", "style", "lcm-lora-sdv1-5 for the encoder")
)
FOR_SDXL = "dmd2_sdxl_4step_lora.safetensors"
LAYERS = [f"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_{part}" for part in "qkv"]


@pytest.fixture(scope="module", autouse=True)
def files(server, base, untrained_checkpoint):
    """Diffusion models and LoRAs with the names of published ones."""
    with safe_open(untrained_checkpoint, framework="pt") as file:
        prefix = "model.diffusion_model."
        unet = {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}
    folder, loras = base / "models" / "diffusion_models", base / "models" / "loras"
    written = base / "output" / "diffusion_models"
    for made in (folder, loras, written, base / "models" / "checkpoints"):
        made.mkdir(parents=True, exist_ok=True)
    save_file(unet, folder / INSTAFLOW)
    for name in (DMD2, PLAIN):
        (folder / name).symlink_to(folder / INSTAFLOW)
    save_file({name: weight * 1.01 for name, weight in unet.items()}, folder / OTHER)
    for seed, name in enumerate((LCM, YOSO, STYLE)):
        save_lora(loras / name, LAYERS, seed)
    save_lora(loras / FOR_SDXL, ["diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_q"], 8)
    save_lora(loras / ENCODER_ONLY, ["lora_te_text_model_encoder_layers_0_mlp_fc1"], 9)
    yield
    for path in (*written.iterdir(), *folder.iterdir(), *loras.iterdir()):
        path.unlink()


def save_lora(path, layers, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in layers:
        width = 3072 if "fc1" in layer else 320
        inner = 768 if layer.endswith(("to_k", "to_v", "fc1")) else 320
        weights[f"{layer}.lora_up.weight"] = torch.randn(width, 4, generator=generator)
        weights[f"{layer}.lora_down.weight"] = torch.randn(4, inner, generator=generator)
        weights[f"{layer}.alpha"] = torch.tensor(4.0)
    save_file(weights, path)


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def stock(name):
    return node("UNETLoader", unet_name=name, weight_dtype="default")


def ours(name, preset="auto"):
    return node("SNOOPICheckpointLoader", model_name=f"diffusion_models/{name}", preset=preset)


def lora(source, name, strength=1.0):
    return node("LoraLoaderModelOnly", model=source, lora_name=name, strength_model=strength)


def loras(*dicts):
    named = {f"lora_{number}": told for number, told in enumerate(dicts, start=1)}
    return node("TestPowerLora", model=["a", 0], **named)


def merge(one, other):
    return node("ModelMergeSimple", model1=one, model2=other, ratio=0.5)


@pytest.fixture(scope="module")
def said(server):
    """said(graph, kind="SNOOPIModelSampling", **inputs): what `auto` says at the node "model" of a graph."""

    def said(graph, end=None):
        end = end or {"auto": node("SNOOPIModelSampling", model=["model", 0], preset="auto")}
        slot = 1 if "preset" in end["auto"]["inputs"] else 0
        prompt_id = server.queue(graph | end | {"shown": node("PreviewAny", source=["auto", slot])})
        server.wait(prompt_id)
        outputs = json.loads(server.request(f"history/{prompt_id}"))[prompt_id]["outputs"]
        return outputs["shown"]["text"][0]

    return said


def row(sentence):
    return re.search(r"Preset (\S+): timesteps", sentence)[1]


def unsure(sentence):
    return "auto cannot know" in sentence or "neither the file nor its name tells" in sentence


TWO_STOCK = {"a": stock(INSTAFLOW), "b": stock(DMD2)}
TWO_OURS = {"a": ours(INSTAFLOW), "b": ours(DMD2)}


def switch(select=2):
    return node("TestAnySwitch", select=select, any_1=["a", 0], any_2=["b", 0])


#: The graph up to its node "model", and the row of the model that really comes.
KNOWN = {
    "a stock loader": ({"model": stock(INSTAFLOW)}, "instaflow"),
    "our loader": ({"model": ours(INSTAFLOW)}, "instaflow"),
    "a switch behind our loaders": (TWO_OURS | {"model": switch()}, "dmd2-sd15"),
    "the same switch, the other way": (TWO_OURS | {"model": switch(1)}, "instaflow"),
    "switches in switches behind our loaders": (
        TWO_OURS | {"c": ours(PLAIN, "lcm"), "s": switch(),
                    "t": node("TestAnySwitch", select=1, any_1=["s", 0], any_2=["c", 0]),
                    "model": node("TestAnySwitch", select=3, any_2=["c", 0], any_3=["t", 0])}, "dmd2-sd15"),
    "a preset chosen in our loader": (TWO_OURS | {"b": ours(PLAIN, "dmd2-sd15"), "model": switch()}, "dmd2-sd15"),
    "a reroute": ({"a": stock(DMD2), "model": node("TestReroute", **{"": ["a", 0]})}, "dmd2-sd15"),
    "a link under another name, a text that names a file": (
        {"a": stock(DMD2), "model": node("TestOtherName", diffusion=["a", 0], note=INSTAFLOW)}, "dmd2-sd15"),
    "another loader in the graph": (TWO_STOCK | {"model": node("TestReroute", **{"": ["b", 0]})}, "dmd2-sd15"),
    "a pipe": (
        {"a": stock(DMD2), "p": node("TestToPipe", model=["a", 0]), "model": node("TestFromPipe", pipe=["p", 0])},
        "dmd2-sd15"),
    "a name by a primitive": (
        {"n": node("PrimitiveString", value=LCM), "a": stock(PLAIN),
         "model": node("TestRepeatLora", model=["a", 0], lora_name=["n", 0], times=1)}, "lcm"),
    "a LoRA": ({"a": stock(PLAIN), "model": lora(["a", 0], LCM)}, "lcm"),
    "a LoRA on our loader": ({"a": ours(INSTAFLOW), "model": lora(["a", 0], LCM)}, "lcm"),
    "a LoRA at strength 0": ({"a": stock(INSTAFLOW), "model": lora(["a", 0], LCM, 0.0)}, "instaflow"),
    "a LoRA at strength 0 for the model, 1 for the text encoder": (
        {"a": stock(DMD2), "c": node("CheckpointLoaderSimple", ckpt_name="snoopi-shapes.safetensors"),
         "model": node("LoraLoader", model=["a", 0], clip=["c", 1], lora_name=LCM, strength_model=0.0,
                       strength_clip=1.0)}, "dmd2-sd15"),
    "two LoRAs, one at strength 0": (
        {"a": stock(PLAIN), "b": lora(["a", 0], LCM), "model": lora(["b", 0], YOSO, 0.0)}, "lcm"),
    "a style LoRA on a LoRA": ({"a": stock(PLAIN), "b": lora(["a", 0], LCM), "model": lora(["b", 0], STYLE)}, "lcm"),
    "a style LoRA": ({"a": stock(DMD2), "model": lora(["a", 0], STYLE)}, "dmd2-sd15"),
    "a LoRA for the text encoder alone": (
        {"a": stock(DMD2), "model": loras(dict(on=True, lora=ENCODER_ONLY, strength=1))}, "dmd2-sd15"),
    "a LoRA switched off in a dict": (
        {"a": stock(DMD2), "model": loras(dict(on=False, lora=LCM, strength=1))}, "dmd2-sd15"),
    "a LoRA at strength 0 in a dict": (
        {"a": stock(DMD2), "model": loras(dict(on=True, lora=LCM, strength=0))}, "dmd2-sd15"),
    "LoRAs in dicts": (
        {"a": stock(DMD2), "model": loras(dict(on=False, lora=LCM, strength=1), dict(on=True, lora=YOSO, strength=1))},
        "yoso-sd15"),
    "a LoRA through a stack": (
        {"a": stock(PLAIN), "s": node("TestLoraStack", lora_name_1=LCM, model_weight_1=1.0, switch_1="On"),
         "model": node("TestApplyLoraStack", model=["a", 0], lora_stack=["s", 0])}, "lcm"),
    "a LoRA inside a text": (
        {"a": stock(PLAIN), "j": node("TestJoin", one=LCM[:-12], two=LCM[-12:]),
         "s": node("TestLoraStack", lora_name_1=["j", 0], model_weight_1=1.0, switch_1="On"),
         "model": node("TestApplyLoraStack", model=["a", 0], lora_stack=["s", 0])}, "lcm"),
    "a LoRA switched off in a stack": (
        {"a": stock(DMD2), "s": node("TestLoraStack", lora_name_1=LCM, model_weight_1=1.0, switch_1="Off"),
         "model": node("TestApplyLoraStack", model=["a", 0], lora_stack=["s", 0])}, "dmd2-sd15"),
    "a switch between a LoRA and none": (
        {"m": ours(DMD2), "a": lora(["m", 0], LCM), "b": node("TestReroute", **{"": ["m", 0]}), "model": switch()},
        "dmd2-sd15"),
    "a switch between two LoRAs": (
        {"m": stock(PLAIN), "a": lora(["m", 0], LCM), "b": lora(["m", 0], YOSO), "model": switch()}, "yoso-sd15"),
    "a LoRA on another model": (TWO_OURS | {"l": lora(["a", 0], LCM), "model": switch()}, "dmd2-sd15"),
    "a node made of others": (
        {"a": ours(DMD2), "model": node("TestRepeatLora", model=["a", 0], lora_name=LCM, times=2)}, "lcm"),
    "a node made of others by a joined name": (
        {"a": ours(DMD2), "t": node("TestJoin", one="lcm-lora-", two="sdv1-5.safetensors"),
         "model": node("TestRepeatLora", model=["a", 0], lora_name=["t", 0], times=1)}, "lcm"),
    "a node made of no others": (
        {"a": ours(DMD2), "model": node("TestRepeatLora", model=["a", 0], lora_name=LCM, times=0)}, "dmd2-sd15"),
    "a switch behind stock loaders of other weights": (
        {"a": stock(OTHER), "b": stock(DMD2), "model": switch()}, "dmd2-sd15"),
    "the same switch behind stock loaders, the other way": (
        {"a": stock(OTHER), "b": stock(DMD2), "model": switch(1)}, "sid-lsg"),
    "that switch behind a LoRA on one": (
        {"a": stock(OTHER), "c": stock(DMD2), "b": lora(["c", 0], STYLE), "model": switch()}, "dmd2-sd15"),
    "a LoRA behind that switch": (
        {"a": stock(OTHER), "b": stock(DMD2), "s": switch(), "model": lora(["s", 0], STYLE)}, "dmd2-sd15"),
    "checkpoints/x is x": (
        {"a": node("SNOOPICheckpointLoader", model_name="checkpoints/snoopi-shapes.safetensors", preset="auto"),
         "model": node("TestReroute", **{"": ["a", 0]})}, "sd"),
    "a merge of a model with itself": (
        {"a": stock(DMD2), "model": merge(["a", 0], ["a", 0])}, "dmd2-sd15"),
}  # fmt: skip

#: Graphs in which the row of the model that comes is asked for where ComfyUI says which file it is, and else no row.
FROM_NEWER_COMFYUI = {
    "a switch behind stock loaders": (TWO_STOCK | {"model": switch()}, "dmd2-sd15"),
    "a switch with one loader that has another name": (
        {"a": stock(PLAIN), "b": stock(DMD2), "model": switch()}, "dmd2-sd15"),
    "switches behind stock loaders, two of the same weights": (
        TWO_STOCK | {"c": stock(OTHER), "s": switch(),
                     "model": node("TestAnySwitch", select=2, any_1=["c", 0], any_2=["s", 0])}, "dmd2-sd15"),
    "a loader by a text": ({"model": node("TestLoadByText", name=INSTAFLOW)}, "instaflow"),
    "a loader by a joined text": (
        {"t": node("TestJoin", one="insta", two=INSTAFLOW[5:]), "model": node("TestLoadByText", name=["t", 0])},
        "instaflow"),
}  # fmt: skip

UNKNOWN = {
    "a merge": TWO_STOCK | {"model": merge(["a", 0], ["b", 0])},
    "a merge behind our loaders": TWO_OURS | {"model": merge(["a", 0], ["b", 0])},
    "a merge of a merge": TWO_OURS | {"m": merge(["a", 0], ["b", 0]), "model": merge(["m", 0], ["a", 0])},
    "a LoRA on a merge": TWO_OURS | {"m": merge(["a", 0], ["b", 0]), "model": lora(["m", 0], STYLE)},
    "a merge with a model of no row": {
        "a": ours(INSTAFLOW), "b": ours(PLAIN),
        "model": node("ModelMergeBlocks", model1=["a", 0], model2=["b", 0], input=1.0, middle=1.0, out=0.5)},
    "a LoRA that the graph does not name": {
        "m": ours(DMD2), "t": node("TestJoin", one="lcm-lora-", two="sdv1-5.safetensors"),
        "s": node("TestLoraStack", lora_name_1=["t", 0], model_weight_1=1.0, switch_1="On"),
        "model": node("TestApplyLoraStack", model=["m", 0], lora_stack=["s", 0])},
    "a file that says nothing": {"model": ours(PLAIN)},
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_auto_takes_the_row_of_the_model_that_came(said, case):
    graph, expected = KNOWN[case]
    sentence = said(graph)
    assert row(sentence) == expected, sentence
    assert not unsure(sentence), sentence


@pytest.mark.parametrize("case", FROM_NEWER_COMFYUI)
def test_auto_asks_the_model_or_says_that_it_cannot_know(server, said, case):
    graph, expected = FROM_NEWER_COMFYUI[case]
    sentence = said(graph)
    version = tuple(map(int, server.system_stats()["system"]["comfyui_version"].split(".")[:2]))
    assert row(sentence) == expected if version >= (0, 20) else unsure(sentence), sentence


@pytest.mark.parametrize("case", UNKNOWN)
def test_auto_says_that_it_cannot_know(said, case):
    sentence = said(UNKNOWN[case])
    assert unsure(sentence) and row(sentence) in ("few-step", "dmd2-sd15"), sentence


def test_a_lora_for_another_family_is_told(said):
    """It stands before the model and changes nothing; on another model in the graph it is not told."""
    graph = {"a": stock(DMD2), "model": lora(["a", 0], FOR_SDXL)}
    told = f"The LoRA {FOR_SDXL} is for SDXL and changes nothing in this SD 1.x model."
    sentence = said(graph)
    assert row(sentence) == "dmd2-sd15" and told in sentence
    assert told not in said({"a": stock(DMD2), "x": lora(["a", 0], FOR_SDXL), "model": lora(["a", 0], STYLE)})


def test_a_loras_strength_on_the_model_counts(said):
    sentence = said({"a": stock(DMD2), "model": lora(["a", 0], LCM, 0.2)})
    assert row(sentence) == "dmd2-sd15" and f"The LoRA {LCM} acts at strength 0.2, too weak" in sentence
    assert row(said({"a": stock(DMD2), "model": lora(["a", 0], LCM, 0.6)})) == "lcm"


def test_core_switch(server, said):
    """ComfyUI's own switch is followed, as its input says; 0.3.75 has none."""
    if not server.object_info("ComfySwitchNode"):
        assert "ComfySwitchNode" not in server.object_info()
        return
    for loaders in (TWO_OURS, TWO_STOCK):
        for value, expected in ((True, "dmd2-sd15"), (False, "instaflow")):
            graph = loaders | {"model": node("ComfySwitchNode", switch=value, on_false=["a", 0], on_true=["b", 0])}
            assert row(said(graph)) == expected
            graph["model"]["inputs"]["switch"] = ["p", 0]
            assert row(said(graph | {"p": node("PrimitiveBoolean", value=value)})) == expected


@pytest.mark.parametrize("end", [node("TestInLoop", model=["model", 0], reroute=False),
                                 node("TestInLoop", model=["model", 0], reroute=True),
                                 node("TestInLoopByValue", model=["model", 0])])  # fmt: skip
def test_our_node_made_by_another(said, end):
    """As in the body of a loop: its inputs are known to ComfyUI alone, and may be the model itself."""
    assert row(said({"model": ours(DMD2)}, {"auto": end})) == "dmd2-sd15"
    sentence = said({"m": stock(DMD2), "model": lora(["m", 0], LCM)}, {"auto": end})
    assert row(sentence) == "lcm" or unsure(sentence), sentence


def test_from_the_cache_it_says_the_same(said):
    """Another run of a node that expands into others, which ComfyUI does not expand again."""
    graph = {"m": stock(DMD2), "model": node("TestRepeatLora", model=["m", 0], lora_name=LCM, times=2)}
    sentences = []
    for _ in range(2):
        graph[uuid.uuid4().hex] = stock(DMD2)
        end = {"auto": node("SNOOPIModelSampling", model=["model", 0], preset="auto")}
        end["auto"]["inputs"]["again"] = len(sentences)
        sentences.append(said(graph, end))
    assert sentences[0] == sentences[1]


@pytest.mark.parametrize("select, expected", [(1, "instaflow"), (2, "dmd2-sd15")])
def test_a_switch_before_nasa_and_the_one_step_sampler(said, select, expected):
    checkpoint = node("CheckpointLoaderSimple", ckpt_name="snoopi-shapes.safetensors")
    graph = TWO_OURS | {
        "c": checkpoint,
        "text": node("CLIPTextEncode", text="a red circle", clip=["c", 1]),
        "switch": switch(select),
        "model": node("NASACrossAttentionPatch", model=["switch", 0], negative=["text", 0], alpha=0.1,
                      start_percent=0.0, end_percent=1.0),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    }  # fmt: skip
    sampler = node("SNOOPIOneStepSampler", model=["model", 0], positive=["text", 0], latent_image=["latent", 0],
                   seed=select, preset="auto")  # fmt: skip
    sentence = said(graph, {"auto": sampler})
    assert row(sentence) == expected and not unsure(sentence), sentence


def saved(server, base, graph, name):
    """The name of the diffusion model that ModelSave writes of the node "model"."""
    save = node("ModelSave", model=["model", 0], filename_prefix=f"diffusion_models/{name}")
    server.wait(server.queue(graph | {"save": save}))
    (path,) = (base / "output" / "diffusion_models").glob(f"{name}_*")
    return path.name


def by_model_sampling(source, preset="auto"):
    return node("SNOOPIModelSampling", model=source, preset=preset)


SAVED = {
    "a preset chosen in our loader": ({"model": ours(PLAIN, "sid-lsg")}, "sid-lsg", "625; eps; vp noise"),
    "a flow preset": ({"model": ours(INSTAFLOW)}, "instaflow", "1000; flow+"),
    "Model Sampling": (
        {"a": stock(PLAIN), "model": by_model_sampling(["a", 0], "yoso-sd15-2step")}, "yoso-sd15-2step", "999, 499"),
    "Model Sampling on auto and a LoRA": (
        {"a": stock(PLAIN), "b": lora(["a", 0], LCM), "model": by_model_sampling(["b", 0])},
        "lcm", "999, 759, 499, 259; eps"),
    "a style LoRA on our loader": ({"a": ours(DMD2), "model": lora(["a", 0], STYLE)}, "dmd2-sd15", "999; eps"),
    "Model Sampling behind our loader": (
        {"a": ours(INSTAFLOW), "model": by_model_sampling(["a", 0], "dmd-sd15")}, "dmd-sd15", "999; eps"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAVED)
def test_a_saved_model_says_how_it_is_run(server, base, said, case):
    graph, expected, timesteps = SAVED[case]
    name = saved(server, base, graph, f"saved {list(SAVED).index(case)}")
    for loader in (ours(name), stock(name)):
        sentence = said({"model": loader})
        assert row(sentence) == expected and f"timesteps {timesteps}" in sentence
        assert f"the file {name} says so itself" in sentence


def test_a_saved_merge_claims_nothing(server, base, said):
    name = saved(server, base, TWO_OURS | {"model": merge(["a", 0], ["b", 0])}, "saved merge")
    assert unsure(said({"model": ours(name)}))
    name = saved(server, base, {"model": ours(PLAIN)}, "saved plain")
    assert unsure(said({"model": ours(name)}))


def export(path, timestep, value):
    """The file written anew as our trainer does: other weights, another start."""
    with safe_open(path.parent / INSTAFLOW, framework="pt") as file:
        unet = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    unet = {name: weight * value for name, weight in unet.items()}
    words = {"snoopi.format": "1", "snoopi.preset": "sd", "snoopi.start_timestep": str(timestep)}
    words |= {"snoopi.prediction": "epsilon", "snoopi.start_noise": "vp"}
    save_file(unet, path.with_suffix(".part"), metadata=words)
    path.with_suffix(".part").replace(path)


def test_a_model_exported_again_under_its_name(server, base, said):
    """Train, export, queue: our loader loads it anew; with a stock loader what is said stays that of what is loaded."""
    path = base / "models" / "diffusion_models" / "exported.safetensors"
    export(path, 625, 0.1)
    our, stocks = {"model": ours(path.name)}, {"model": stock(path.name)}
    assert "timesteps 625;" in said(our)
    export(path, 999, 0.2)
    assert "timesteps 999;" in said(our)
    assert "timesteps 999;" in said(stocks)
    export(path, 500, 0.3)
    sentence = said(stocks, {"auto": node("SNOOPIModelSampling", model=["model", 0], preset="auto", again=1)})
    assert "timesteps 999;" in sentence
    assert "exported.safetensors has changed since it was loaded: to load it anew, free ComfyUI's cache." in sentence
    free(server)
    assert "timesteps 500;" in said(stocks)


def test_a_file_that_changed_before_auto_saw_it(server, base, said):
    """Loaded for another sampler, exported again, and only then used with `auto`."""
    path = base / "models" / "diffusion_models" / "exported before.safetensors"
    export(path, 625, 0.1)
    loader = {"model": stock(path.name)}
    other = {"auto": by_model_sampling(["model", 0], "sd")}
    assert "as chosen" in said(loader, other)
    export(path, 999, 0.2)
    sentence = said(loader)
    assert unsure(sentence) and "says so itself" not in sentence
    assert "exported before.safetensors has changed since it was loaded" in sentence
    free(server)
    assert "says so itself" in said(loader)


def free(server):
    """What the browser's "Free model and node cache" does; the worker frees within a second."""
    server.request("free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)


def test_a_row_edited_in_the_table(server, base, said):
    table = base / "user" / "snoopi_presets.yaml"
    end = {"auto": node("SNOOPIModelSampling", model=["model", 0], preset="mine")}
    try:
        for timestep in (625, 333):
            table.write_text(f"mine: {{prediction: eps, timesteps: [{timestep}], files: [some merge]}}\n")
            assert f"timesteps {timestep};" in said({"model": stock(PLAIN)}, end)
            assert f"timesteps {timestep};" in said({"model": stock(PLAIN)})
            assert f"timesteps {timestep};" in said({"model": ours(PLAIN)})
    finally:
        table.unlink()
    assert unsure(said({"model": stock(PLAIN)}))
