"""Drawn graphs: NASA among other patches in random order, against the formula applied by hand.

200 of a UNet, by hooks on the raw layers, and 200 of joint attention, by networks written out. The weights are random:
this shows that every layer of every row computes the formula, nothing about pictures.
"""

import random
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import cache
from types import MethodType

import comfy.model_patcher
import comfy.samplers
import comfy_extras.nodes_custom_sampler as guiders
import comfy_extras.nodes_perpneg as perpneg
import companions
import joint_truths
import pytest
import torch
from families import JOINT, build, conditioning
from joint_truths import NETWORKS, Steer

GRAPHS = 200
PARTS = 10
drawn, drawn_joint = Counter(), Counter()


@contextmanager
def truth(model, uses, positives):
    """The formula by hand.

    uses: of NASA, each with negatives [(context, mask or None, start, end)], alpha, rule, adaptive, start, end, places,
        norm_limit.
    positives: the uuids of conds that a guider steers towards.
    """
    unet, call, given = model.model.diffusion_model, {}, {}
    sampling = model.get_model_object("model_sampling")

    def begin(_, args, kwargs):
        options = kwargs["transformer_options"]
        sigma, chunks = float(options["sigmas"][0]), options["cond_or_uncond"]
        call["alive"] = [uuid in positives for uuid in options["uuids"]]
        call["chunks"], call["size"] = chunks, args[0].shape[2:]
        call["rows"] = args[0].shape[0] // len(chunks)

        def within(start, end):
            return sampling.percent_to_sigma(start) >= sigma >= sampling.percent_to_sigma(end)

        call["uses"] = []
        for use in uses:
            acting = [n for n in use["negatives"] if within(max(n[2], use["start"]), min(n[3], use["end"]))]
            if acting:
                call["uses"].append((use, acting))

    def remember(module, _, output):
        given[module] = output

    def attention(attn, k, v):
        """Z and the sum of exp(q k / sqrt(d)), [rows, tokens, heads, channels or 1]."""
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (given[attn.to_q], k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        z, total = scores.softmax(-1) @ v, scores.double().exp().sum(-1, keepdim=True)
        return z.transpose(1, 2) * override(model), total.transpose(1, 2)

    def share(acting, tokens):
        """[tokens] for every negative: masks in the layer's size, and the mean where negatives overlap."""
        height, width = call["size"]
        shrunk = round((height * width / tokens) ** 0.5)
        size = height // shrunk, width // shrunk
        maps = [torch.ones(height, width) if mask is None else mask for _, mask, *_ in acting]
        total = sum(maps).clamp(min=1)
        return [
            torch.nn.functional.interpolate((m / total)[None, None], size=size, mode="bilinear").flatten() for m in maps
        ]

    def steer(attn, place):
        def before_output(_, args):
            (z,) = args
            # What comes after reads the projections again, for the negatives.
            z_positive, e_positive = attention(attn, given[attn.to_k], given[attn.to_v])
            z = z.unflatten(-1, (attn.heads, -1))
            result, limits, subtracted, mass = z.clone(), [], 0.0, 1.0
            for use, acting in call["uses"]:
                if place not in use["places"]:
                    continue
                for (context, *_), weight in zip(acting, share(acting, z.shape[1]), strict=True):
                    context = context.expand(z.shape[0], -1, -1)
                    z_negative, e_negative = attention(attn, attn.to_k(context), attn.to_v(context))
                    alpha = use["alpha"] * weight[:, None, None]
                    if use["adaptive"]:
                        alpha = alpha * (2 - 2 * e_positive / (e_positive + e_negative)).clamp(max=1).float()
                    if use["rule"] == "nasa":
                        result -= alpha * z_negative
                    elif use["rule"] == "difference":
                        result += alpha * (z_positive - z_negative)
                    else:
                        m = (e_negative / e_positive).float()
                        subtracted = subtracted + alpha * m * z_negative
                        mass = mass + alpha.clamp(max=1) * m
                limits += [use["norm_limit"]] if use["norm_limit"] else []
            result = (result + (z_positive - subtracted) / mass - z_positive).flatten(2)
            z = z.flatten(2)
            if limits:
                ratio = result.abs().sum(-1, keepdim=True) / z.abs().sum(-1, keepdim=True)
                result = torch.where(ratio > min(limits), result * min(limits) / ratio, result)
            return (torch.where(alive(z.shape[0])[:, None, None], result, z),)

        return before_output

    def alive(rows):
        """Which rows are steered; attention couple repeats those of cond 0."""
        times = 1
        if rows != call["rows"] * len(call["chunks"]):
            positive = call["chunks"].count(0)
            times = (rows // call["rows"] - len(call["chunks"]) + positive) // positive
        counts = [call["rows"] * (times if chunk == 0 else 1) for chunk in call["chunks"]]
        return torch.tensor([on for on, count in zip(call["alive"], counts, strict=True) for _ in range(count)])

    with ExitStack() as stack:
        stack.callback(unet.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for place, attn in places(unet):
            for part in (attn.to_q, attn.to_k, attn.to_v):
                stack.callback(part.register_forward_hook(remember).remove)
            stack.callback(attn.to_out.register_forward_pre_hook(steer(attn, place)).remove)
        yield


def override(model):
    return 0.9 if "optimized_attention_override" in model.model_options["transformer_options"] else 1.0


def places(unet):
    sides = [(f"in{n}", part) for n, part in enumerate(unet.input_blocks)] + [("mid", unet.middle_block)]
    sides += [(f"out{n}", part) for n, part in enumerate(unet.output_blocks)]
    return [(place, m) for place, part in sides for name, m in part.named_modules() if name.endswith(".attn2")]


def draw(rng, model, controls):
    """One graph as plain data."""
    text = lambda tokens: companions.randn(rng, 1, tokens, 24)  # noqa: E731
    names = sorted({place for place, _ in places(model.model.diffusion_model)})

    def window():
        return rng.choice([(0.0, 1.0)] * 3 + [(0.0, 0.3), (0.3, 1.0)])

    def mask():
        if rng.random() < 0.7:
            return None
        mask = torch.zeros(8, 8)
        mask[rng.randint(0, 3) : rng.randint(4, 8), rng.randint(0, 3) : rng.randint(4, 8)] = rng.choice((0.5, 1.0))
        return mask

    def use(alpha):
        count = rng.choice((1, 1, 2))
        chosen = names if rng.random() < 0.6 else rng.sample(names, rng.randint(1, 3))
        negatives = [(text(rng.choice((5, 40, 77, 154))), mask(), *window()) for _ in range(count)]
        start, end = window()
        limit = rng.choice((0.0, 0.0, 1.2, 2.5))
        return {
            "negatives": negatives,
            "alpha": alpha,
            "rule": rng.choice(("nasa", "nasa", "difference", "vsf")),
            "adaptive": rng.random() < 0.4,
            "start": start,
            "end": end,
            "places": chosen,
            "norm_limit": limit,
        }

    others = rng.sample(companions.MODEL_COMPANIONS, rng.randint(0, 4))
    uses = [use(rng.choice((0.2, 0.5, 1.2))) for _ in range(rng.choice((1, 1, 1, 2)))]
    guider = rng.choice(("cfg 1", "cfg", "cfg", "basic", "dual", "dual nested", "perp"))
    if companions.self_attention_guidance in others and guider not in ("cfg", "cfg 1"):
        others.remove(companions.self_attention_guidance)  # it refuses a guider without an uncond of its own
    if companions.attention_couple in others and companions.ip_adapter in others:
        others.remove(companions.ip_adapter)  # the stand-ins expect one batch size
    order = [*others, *range(len(uses))]
    rng.shuffle(order)
    return {
        "order": order,
        "uses": uses,
        "guider": guider,
        "texts": [text(rng.choice((77, 77, 154))) for _ in range(3)],
        "on conds": rng.choice((None, None, *controls)),
        "latent": (4, 8, 8),
        "batch": rng.randint(1, 3),
        "steps": rng.choice((1, 2)),
        "kept": rng.random() < 0.5,
        "seed": rng.randrange(2**31),
    }


def assemble(graph, model, patch, controls):
    """A guider, with the uses of NASA that patch(model, n) gives in their place among the others."""
    for number, step in enumerate(graph["order"]):
        if isinstance(step, int):
            model = patch(model, step)
        else:
            model = step(model, random.Random(f"{graph['seed']} {number}"))
    texts = [list(text) if isinstance(text, list) else [[text, {"pooled_output": torch.zeros(1, 8)}]]
             for text in graph["texts"]]  # fmt: skip
    if graph["on conds"]:
        texts[0] = controls[graph["on conds"]](texts[0], random.Random(graph["seed"]))
    positive, negative, middle = texts
    match graph["guider"]:
        case "basic":
            return guiders.BasicGuider.execute(model, positive).args[0]
        case "dual" | "dual nested" as name:
            style = "nested" if "nested" in name else "regular"
            return guiders.DualCFGGuider.execute(model, positive, middle, negative, 3.0, 2.0, style).args[0]
        case "perp":
            return perpneg.PerpNegGuider.execute(model, positive, negative, middle, 3.0, 0.7).args[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0 if graph["guider"] == "cfg" else 1.0)
    return guider


def run(graph, guider):
    noise = torch.randn(graph["batch"], *graph["latent"], generator=torch.Generator().manual_seed(7))
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", graph["steps"])
    mask = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(8))
    torch.manual_seed(graph["seed"])  # HyperTile and ToMe draw from the global generator
    random.seed(graph["seed"])
    with torch.inference_mode():
        return guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas,
            denoise_mask=mask if companions.differential_diffusion in graph["order"] else None,
            disable_pbar=True, seed=7,
        )  # fmt: skip


@pytest.fixture(scope="module")
def controls(models):
    model = models["SD 1.5"]
    return {make.__name__: make(model) for make in (companions.control_net, companions.t2i_adapter, companions.gligen)}


@pytest.mark.parametrize("part", range(PARTS))
def test_drawn_graphs(pack, model, controls, monkeypatch, part):
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    for number in range(part, GRAPHS, PARTS):
        graph = draw(random.Random(number), model, controls)
        monkeypatch.setattr(pack.prompt, "SHARE", 100.0 if graph["kept"] else 0.0)

        def nasa(model, number, graph=graph):
            use = graph["uses"][number]
            options = [
                {"start_percent": start, "end_percent": end, "pooled_output": torch.zeros(1, 8)}
                | ({} if mask is None else {"mask": mask[None], "mask_strength": 1.0})
                for _, mask, start, end in use["negatives"]
            ]
            negative = [[n[0], option] for n, option in zip(use["negatives"], options, strict=True)]
            chosen = ", ".join(use["places"]) if len(use["places"]) < 6 else "all"
            window = use["start"], use["end"]
            return pack.payload.patch(
                model, negative, use["alpha"], *window, chosen, use["norm_limit"], f"use {number}",
                rule=use["rule"], adaptive=use["adaptive"],
            )  # fmt: skip

        def without(model, number):
            return model.clone()

        guider = assemble(graph, model, without, controls)
        lists = guider.original_conds
        positives = {cond["uuid"] for name in lists if name == "positive" for cond in lists[name]}
        plain = run(graph, guider)
        with truth(guider.model_patcher, graph["uses"], positives):
            expected = run(graph, guider)
        steered = assemble(graph, model, nasa, controls)
        for picture in range(2 if graph["kept"] else 1):  # the second picture finds K- and V-
            result = run(graph, steered)
            error = (result - expected).abs().max() / expected.abs().max()
            assert error < 2e-4, (number, picture, float(error), graph)
        drawn.update(getattr(step, "__name__", "nasa") for step in graph["order"])
        drawn.update(
            [graph["guider"], graph["on conds"], "acted" if not torch.equal(plain, expected) else "out of range"]
        )
    assert torch.equal(run(graph, assemble(graph, model, without, controls)), plain)
    sample_plain(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())


def sample_plain(model):
    """ComfyUI takes a LoRA's weights out when the unpatched model runs."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[torch.zeros(1, 77, 24), {}]], [])
    run({"latent": (4, 8, 8), "batch": 1, "steps": 1, "seed": 1, "order": []}, guider)


def test_everything_was_drawn():
    """Runs after the graphs: the draw reached every companion and guider, and NASA mostly acted."""
    if drawn.total() == 0:
        pytest.skip("the graphs were not drawn in this run")
    names = {step.__name__ for step in companions.MODEL_COMPANIONS} | {"cfg", "basic", "dual", "dual nested", "perp"}
    names |= {"control_net", "t2i_adapter", "gligen"}
    assert all(drawn[name] >= 3 for name in names), drawn
    assert drawn["acted"] > 0.8 * GRAPHS and drawn["acted"] + drawn["out of range"] == GRAPHS


#: How many graphs of each; FLUX.2's texts are long.
JOINT_GRAPHS = {
    "Flux": 40, "Flux schnell": 30, "Flux 2": 10, "SD 3": 30, "SD 3.5 large": 30, "SD 3.5 medium": 30, "OmniGen 2": 30,
}  # fmt: skip


@cache
def built(name):
    return build(name)


def draw_joint(rng, name):
    """One graph of joint attention as plain data; its uses of NASA share rule, blocks and norm_limit."""
    height, width = JOINT[name].latent[-2:]

    def window():
        return rng.choice([(0.0, 1.0)] * 3 + [(0.0, 0.3), (0.3, 1.0)])

    def text(tokens):
        return conditioning(name, rng.randrange(2**31), tokens=tokens)

    def place():
        """A mask or an area, and the same over latents."""
        drawn, map = rng.choice(("nowhere", "nowhere", "mask", "area")), torch.zeros(height, width)
        if drawn == "area" and height % 2 == 0:
            map[height // 2 :] = 1.0
            return {"area": ("percentage", 0.5, 1.0, 0.5, 0.0), "strength": 1.0}, map
        if drawn == "mask":
            map[rng.randint(0, 2) : rng.randint(3, height), rng.randint(0, 2) : rng.randint(3, width)] = 1.0
            strength = rng.choice((0.5, 1.0))
            return {"mask": map[None], "mask_strength": strength, "set_area_to_bounds": False}, strength * map
        return {}, torch.ones(height, width)

    def use():
        negatives = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            ((context, options),), (where, map), (start, end) = text(rng.choice((1, 5, 9, 14))), place(), window()
            options = options | where | {"start_percent": start, "end_percent": end}
            negatives.append((context, options, map, start, end))
        start, end = window()
        return {"negatives": negatives, "alpha": rng.choice((0.0, 0.3, 0.8, 1.5)), "start": start, "end": end}

    uses = [use() for _ in range(rng.choice((1, 1, 2)))]
    order = [*rng.sample(companions.JOINT_COMPANIONS, rng.randint(0, 4)), *range(len(uses))]
    rng.shuffle(order)
    return {
        "order": order,
        "uses": uses,
        "rule": rng.choice(("nasa", "difference", "vsf")),
        "adaptive": rng.random() < 0.5,
        "last blocks": rng.random() < 0.3,
        "norm_limit": rng.choice((0.0, 0.0, 1.2)),
        "guider": rng.choice(("cfg 1", "cfg", "cfg", "basic", "dual", "dual nested", "perp")),
        "texts": [text(12), text(rng.choice((12, 12, 7))), text(12)],
        "on conds": None,
        "latent": JOINT[name].latent,
        "batch": rng.randint(1, 2),
        "steps": rng.choice((1, 2)),
        "seed": rng.randrange(2**31),
    }


@contextmanager
def joint_truth(name, model, graph, only, positives, monkeypatch):
    """The network written out, with the uses that act in each call, for its rows of positives."""
    network, written = model.model.diffusion_model, NETWORKS[JOINT[name].layout]
    sampling, attend = model.get_model_object("model_sampling"), joint_truths.explicit.softmax_of

    def over_tokens(map):
        size = network.patch_size
        pad = 0, -map.shape[1] % size, 0, -map.shape[0] % size
        map = torch.nn.functional.pad(map[None, None], pad, mode="replicate")
        return torch.nn.functional.avg_pool2d(map, size).flatten()

    def forward(network, x, timestep, context, **kwargs):
        options = kwargs["transformer_options"]
        sigma, rows = float(options["sigmas"][0]), len(x) // len(options["uuids"])
        alive = torch.tensor([uuid in positives for uuid in options["uuids"] for _ in range(rows)])

        def within(start, end):
            return sampling.percent_to_sigma(start) >= sigma >= sampling.percent_to_sigma(end)

        contexts, alphas = [], []
        for use in graph["uses"]:
            acting = [n for n in use["negatives"] if within(max(n[3], use["start"]), min(n[4], use["end"]))]
            total = sum(n[2] for n in acting).clamp(min=1) if acting else 1
            for negative_context, _, map, *_ in acting if use["alpha"] else ():
                contexts.append(negative_context)
                alphas.append(use["alpha"] * alive[:, None] * over_tokens(map / total))
        steer = Steer(contexts, alphas, graph["rule"], graph["adaptive"], only, graph["norm_limit"])
        return written(network, steer, x, timestep, context, **kwargs)

    network.forward = MethodType(forward, network)
    monkeypatch.setattr(joint_truths.explicit, "softmax_of", lambda *args: attend(*args) * override(model))
    try:
        yield
    finally:
        monkeypatch.setattr(joint_truths.explicit, "softmax_of", attend)
        del network.forward


@pytest.mark.parametrize("name", JOINT_GRAPHS)
def test_drawn_graphs_of_joint_attention(pack, name, monkeypatch):
    model = built(name)
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    for number in range(JOINT_GRAPHS[name]):
        graph = draw_joint(random.Random(f"{name} {number}"), name)
        blocks = [
            key for key in pack.layouts.find_layout(model.model.diffusion_model).blocks(model.model.diffusion_model)
        ]
        only = blocks[-1:] if graph["last blocks"] else blocks

        def nasa(model, number, graph=graph, only=only):
            use = graph["uses"][number]
            negative = [[context, options] for context, options, *_ in use["negatives"]]
            window = use["start"], use["end"]
            return pack.payload.patch(
                model, negative, use["alpha"], *window, ", ".join(only), graph["norm_limit"], f"use {number}",
                rule=graph["rule"], adaptive=graph["adaptive"],
            )  # fmt: skip

        def without(model, number):
            return model.clone()

        guider = assemble(graph, model, without, {})
        positives = {cond["uuid"] for cond in guider.original_conds["positive"]}
        plain = run(graph, guider)
        with joint_truth(name, guider.model_patcher, graph, only, positives, monkeypatch):
            expected = run(graph, guider)
        steered = assemble(graph, model, nasa, {})
        for _ in range(2):  # the second picture finds what is kept
            result = run(graph, steered)
            error = (result - expected).abs().max() / expected.abs().max()
            assert error < 5e-5, (number, float(error), graph)
        drawn_joint.update(getattr(step, "__name__", "nasa") for step in graph["order"])
        drawn_joint.update([graph["guider"], "acted" if (result - plain).abs().max() > 1e-3 else "left alone"])
        if not any(use["alpha"] for use in graph["uses"]):
            assert torch.equal(result, plain)
            drawn_joint.update(["alpha 0"])
    assert torch.equal(run(graph, assemble(graph, model, without, {})), plain)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(graph["texts"][0], [])
    run(graph | {"order": []}, guider)  # takes a LoRA's weights out
    assert all(torch.equal(value, weights[key]) for key, value in model.model.state_dict().items())


def test_everything_of_joint_attention_was_drawn():
    if drawn_joint.total() == 0:
        pytest.skip("the graphs were not drawn in this run")
    names = {step.__name__ for step in companions.JOINT_COMPANIONS} | {"cfg", "basic", "dual", "dual nested", "perp"}
    assert all(drawn_joint[name] >= 3 for name in {*names, "alpha 0"}), drawn_joint
    assert drawn_joint["acted"] > 0.6 * (drawn_joint["acted"] + drawn_joint["left alone"]), drawn_joint
