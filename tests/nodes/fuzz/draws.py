"""Seeded draws of what nobody should feed a node, each as plain data from a random.Random."""

import json
import pickle
import random
import struct

import torch

TEXTS = ["", " ", "\0", "\ud800", "\N{CAT FACE}", "\n\x1b[31m", "<img src=x onerror=alert(1)>", "{}", "%s", "../../x",
         "auto", "sd", "nan", "1e999", "in4-8", "in99", "mid,,", "9" * 5_000, "x" * 20_000, "é" * 300]  # fmt: skip
VALUES = [None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e308, 2**63, 2**70, float("nan"), float("inf"), [], {}, [1, 2, 3],
          {"a": 1}, {"__value__": [1]}, [None], *TEXTS]  # fmt: skip
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn]  # fmt: skip
PRESETS = ["auto", "sd", "sid-lsg", "lcm", "instaflow", "pg-sb-sd15", "dmd2-sd15", "yoso-lora"]


LATENTS = [
    (1, 4, 8, 8), (1, 4, 8, 8), (2, 4, 8, 8), (1, 4, 5, 9), (1, 16, 8, 8), (1, 0, 8, 8), (0, 4, 8, 8), (1, 4, 0, 8),
    (4, 8, 8), (1, 4, 1, 8, 8), (1, 4, 3, 8, 8), (1, 1, 4, 1, 8, 8), (8,), (), (1, 3, 8, 8), (1, 4, 2, 4), (1, 5, 8, 8),
]  # narrow models norm groups of one channel, so that 2 x 2 is too small for them  # fmt: skip
AREAS = [
    (8, 8, 0, 0), (4, 4, 4, 4), (4, 4, 99, 99), (0, 0, 0, 0), (-4, 4, 0, 0), (4, 4), "area", None, (0.5, 0.5, 0.5, 0.5),
    ("percentage", 0.5, 0.5, 0.5, 0.5), ("percentage", 2.0, float("nan"), 0, 0),
]  # fmt: skip
SAID_KEYS = ["preset", "start_timestep", "start_noise", "prediction", "alpha", "format", "backbone", "", "preset ", "x"]
SAID = [
    "625", "999", "1000", "-1", "nan", "inf", "1e400", "0x10", "9" * 5_000, "", " ", "[]", "625.5", "six", "sd", "unit",
    "vp", "ipi", "eps", "epsilon", "v_prediction", "sample", "no such", "<b>", "x" * 9_000, "\0", "sd\n",
]  # fmt: skip


def inputs(rng: random.Random) -> dict[str, object]:
    """Values of every widget of the sampler, the patch and the other nodes; most of them good."""
    good = {
        "seed": rng.randrange(2**64), "preset": rng.choice(PRESETS), "alpha": rng.choice((-1.0, 0.0, 0.5, 2.0)),
        "denoise": rng.choice((1.0, 1.0, 0.5)), "start_percent": 0.0, "end_percent": 1.0,
        "blocks": rng.choice(("all", "in1", "mid", "out0-3")), "norm_limit": rng.choice((0.0, 2.5)), "name": "",
    }  # fmt: skip
    for name in rng.sample(list(good), rng.choice((1, 1, 2, 3))):
        good[name] = rng.choice(VALUES)
    return good


def tensor(rng: random.Random, *shape: int) -> torch.Tensor:
    """Random numbers; often of another kind than a node expects."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    match rng.randrange(9):
        case 0:
            return value.to(rng.choice(DTYPES))
        case 1 if value.numel():
            value.view(-1)[0] = rng.choice((float("nan"), float("inf"), -float("inf"), 1e30))
        case 2:
            return value.to_sparse()
        case 3:
            return value.clone().requires_grad_()
        case 4:
            return value.mT if value.ndim >= 2 else value
    return value


def mask(rng: random.Random) -> object:
    shape = rng.choice(
        ((8, 8), (1, 8, 8), (2, 8, 8), (1, 1, 8, 8), (64, 64), (1, 3, 5), (8,), (), (0, 8, 8), (1, 1, 1, 8, 8))
    )
    return rng.choice((None, 1.0, "mask", tensor(rng, *shape), tensor(rng, *shape), tensor(rng, *shape)))


def options(rng: random.Random) -> object:
    """What conditioning nodes write beside an embedding."""
    number = lambda: rng.choice((0, 0.5, 1.0, -1, 2, 1e9, float("nan"), None, "1", [1]))  # noqa: E731
    area = rng.choice(AREAS)
    some = {
        "area": area, "mask": mask(rng), "strength": number(), "mask_strength": number(), "start_percent": number(),
        "end_percent": number(), "set_area_to_bounds": rng.choice((True, False, None, "x")),
        "default": rng.choice((True, 1)),
        "pooled_output": rng.choice((None, "x", tensor(rng, 1, 1280))), "guidance": number(), "width": number(),
        "": number(),
    }  # fmt: skip
    chosen = {key: some[key] for key in rng.sample(list(some), rng.choice((0, 1, 1, 2, 3)))}
    return rng.choice((chosen, chosen, chosen, chosen, chosen, None, [], "x", list(chosen.items())))


def conditioning(rng: random.Random, width: int) -> object:
    def embedding():
        shape = [rng.choice((1, 1, 1, 2, 0)), rng.choice((77, 77, 1, 154, 0)), rng.choice((width, width, width, 7, 0))]
        rng.choice((shape.append, shape.append, lambda _: shape.clear(), *[lambda _: None] * 20))(1)
        return rng.choice((None, "text", *[tensor(rng, *shape)] * 10))

    def entry():
        pair = [embedding(), options(rng)]
        return rng.choice(
            (*[pair] * 12, tuple(pair), pair[:1], [*pair, 3], pair[::-1], None, "x", pair[0], {"a": 1}, [])
        )

    whole = [entry() for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    return rng.choice((*[whole] * 16, tuple(whole), None, [], {}, "x", whole[0], 3))


def latent(rng: random.Random) -> object:
    shape = rng.choice(LATENTS)
    samples = rng.choice((*[tensor(rng, *shape)] * 6, *[torch.zeros(shape)] * 4, None, "x", [1], [torch.zeros(shape)]))
    some = {
        "noise_mask": mask(rng),
        "batch_index": rng.choice(([0], [1, 1], [-1], [2**70], ["x"], [0.5], [None], None, 3, "ab", [[0]], [0] * 99,
                                   torch.zeros(1), {0: 1})),
        "downscale_ratio_spacial": rng.choice((8, 16, 0, -8, None, "x", float("nan"), 2.5)),
        "downscale_ratio_temporal": rng.choice((None, 4, 0, "x")), "other": object(),
    }  # fmt: skip
    whole = {"samples": samples} | {key: some[key] for key in rng.sample(list(some), rng.choice((0, 0, 1, 1, 2)))}
    if rng.random() < 0.05:
        del whole["samples"]
    return rng.choice((*[whole] * 20, None, [], samples, "x", {}))


def metadata(rng: random.Random) -> dict[str, str]:
    """What a file says of itself in the trainer's way, or nearly so."""
    found = {f"snoopi.{key}": rng.choice(SAID) for key in rng.sample(SAID_KEYS, rng.choice((1, 2, 3, 5)))}
    return found | rng.choice(
        ({}, {}, {"modelspec.prediction_type": rng.choice(SAID)}, {"modelspec.title": rng.choice(SAID)})
    )


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + body


KEYS = [
    "input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "label_emb.0.0.weight",
    "time_embed.0.weight", "out.2.weight", "middle_block.1.proj_in.weight", "cap_embedder.0.weight", "head.modulation",
    "joint_blocks.0.context_block.attn.qkv.weight", "double_blocks.0.img_attn.norm.key_norm.scale", "pos_embed",
    "x_embedder.proj.weight", "y_embedder.y_embedding", "blocks.0.cross_attn.q_linear.weight", "clf.1.weight",
    "transformer_blocks.0.attn.norm_added_k.weight", "down_blocks.0.resnets.0.conv1.weight", "conv_in.weight",
    "img_in.weight", "txt_in.weight", "adaln_single.emb.timestep_embedder.linear_1.bias", "patch_embedding.weight",
    "final_layer.linear.weight",
]  # fmt: skip
PREFIXES = [
    "model.diffusion_model.",
    "model.model.",
    "net.",
    "",
    "unet.",
    "first_stage_model.",
    "cond_stage_model.",
    "\0",
]


def model_file(rng: random.Random) -> tuple[str, bytes]:
    """A name ending, and bytes that are no whole model."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
    header, end = {}, 0
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        kind = rng.choice(list(sizes))
        shape = rng.choice(([], [0], [1], [4], [320, 4], [8, 4, 3, 3], [4, 8, 1, 1], [2, 0, 3, 3], [1, 1, 1, 1, 1]))
        size = sizes[kind]
        for side in shape:
            size *= side
        header[rng.choice(PREFIXES) + rng.choice(KEYS)] = {
            "dtype": kind,
            "shape": shape,
            "data_offsets": [end, end + size],
        }
        end += size
    if rng.random() < 0.5:
        header["__metadata__"] = metadata(rng) | rng.choice(
            ({}, {"_quantization_metadata": rng.choice(("{}", "x", '{"layers": 3}'))})
        )
    whole = safetensors(header, bytes(end))
    spoilt = bytearray(whole)
    for _ in range(3):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    junk = rng.randbytes(rng.choice((0, 1, 7, 8, 100)))
    archive = pickle.dumps(
        rng.choice(([1], 3, {}, {"state_dict": {}}, {1: 2}, {"a": None}, "x", {"state_dict": None})), protocol=2
    )
    half, no_header = whole[: rng.randrange(len(whole))], safetensors({"__metadata__": {"a": 1}})
    system = b"\x80\x02cos\nsystem\n(S'touch /tmp/fuzzed'\ntR."
    contents = {
        "safetensors": [
            *[whole] * 8, bytes(spoilt), half, whole + b"more",
            no_header, safetensors(header, bytes(end), length=2**63),
            safetensors(b"[" * 5_000), safetensors({"a": 3}), safetensors({}), junk, archive, b"GGUF" + junk,
            b"<!DOCTYPE html>",
        ],
        "ckpt": [junk, archive, archive[: rng.randrange(len(archive))], system, whole],
        "pt": [b"PK\3\4" + junk], "gguf": [b"GGUF" + junk], "sft": [whole], "SAFETENSORS": [half],
    }  # fmt: skip
    name = rng.choice(("safetensors", "safetensors", "safetensors", "ckpt", *contents))
    content = rng.choice(contents[name])
    return rng.choice(("m", "dmd2", "\N{CAT FACE}", "<b>", "a" * 200, "\udcff")) + "." + name, content


def table(rng: random.Random) -> bytes:
    """A table of presets in which at least something is odd."""
    value = lambda: rng.choice(  # noqa: E731
        ("eps", "v", "x0", "flow+", "[999]", "[999, 499]", "9", "-1", "1e999", ".nan", "~", "yes", "{a: 1}", "[[a]]",
         "{[a]: b}", "!!bool maybe", "!!timestamp abc", "2001-99-99", "!!int x", "!!binary x", "!!set {a}", "!x y",
         "!!python/name:os.system x", "&a [*a]", "*b", "&b [1, 2]", "<<", "=", "0x" + "f" * 999, "9" * 5_000,
         "1:" * 99 + "1", "'" + "x" * 9_000 + "'", '"\\ud800"', '"\\0"', "[SD 1.x]", "<img src=x onerror=alert(1)>",
         "[" * 50, "'*'", "|\n    text", "? a\n  : b", "'"))  # fmt: skip
    fields = ("prediction", "timesteps", "model", "backbones", "noise", "levels", "alphas_cumprod", "renoise", "output",
              "channels", "latent_scale", "resolution", "alpha", "cfg", "files", "folder", "source", "<<", "other",
              "? [a]", "5", "~")  # fmt: skip
    text = rng.choice(("", "%YAML 1.1\n---\n", "\ufeff", "# x\n", "---\n"))
    for _ in range(rng.choice((1, 1, 2, 3))):
        text += rng.choice(("x", "sd", "auto", "<b>", "~", "[a]", '"\\ud800"', "y" * 200, "&r row")) + ":\n"
        text += rng.choice(("  prediction: eps\n  timesteps: [9]\n", ""))
        text += "".join(f"  {rng.choice(fields)}: {value()}\n" for _ in range(rng.choice((0, 1, 1, 2))))
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        content = bytearray(content)
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)
