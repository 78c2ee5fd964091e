"""What people put beside NASA: core nodes, and stand-ins for other packs' patches at the hooks that those packs use.

Each is companion(model, rng) -> model, a patched clone; or companion(conditioning, rng) -> conditioning.
"""

import comfy.controlnet
import comfy.gligen
import comfy.lora
import comfy.ops
import comfy_extras.nodes_differential_diffusion as differential
import comfy_extras.nodes_freelunch as freelunch
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_model_merging as merging
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_sag as sag
import comfy_extras.nodes_tomesd as tomesd
import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.attention import optimized_attention
from comfy.t2i_adapter.adapter import Adapter


def core(node, *arguments):
    """The first output of a core node, of either API."""
    result = node.execute(*arguments) if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(*arguments)
    return getattr(result, "args", result)[0]


def randn(rng, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))


def lora(model, rng):
    """Weight patches on keys, values and self-attention, as a LoRA's."""
    return _lora(model, rng, ("attn2.to_k", "attn2.to_v", "attn1.to_q"), 0.3)


def joint_lora(model, rng):
    """Weight patches on the blocks of joint attention, text's half and picture's."""
    return _lora(model, rng, (".qkv.", ".linear1.", ".to_q.", ".to_v.", "txt_in.", "context_embedder."), 0.1)


def _lora(model, rng, names, size):
    model, file, keys = model.clone(), {}, {}
    for name, weight in model.model.state_dict().items():
        if any(part in name for part in names) and weight.ndim == 2:
            keys[name] = name
            file[f"{name}.lora_up.weight"] = randn(rng, weight.shape[0], 2) * size
            file[f"{name}.lora_down.weight"] = randn(rng, 2, weight.shape[1]) * size
    assert len(model.add_patches(comfy.lora.load_lora(file, keys), 1.0)) == len(keys) > 0
    return model


def merge(model, rng):
    """The core's model merging, with the same network under another LoRA."""
    return core(merging.ModelMergeSimple, model, lora(model, rng), 0.6)


def ip_adapter(model, rng):
    """attn2 replaced in some blocks: the prompt's attention and another picture's, as IP-Adapter does it."""
    model, image = model.clone(), randn(rng, 1, 4, 64)

    def replacement(q, k, v, extra_options):
        keys = image[..., : k.shape[-1]].repeat(q.shape[0], 1, -(-k.shape[-1] // 64))[..., : k.shape[-1]]
        heads = extra_options["n_heads"]
        return optimized_attention(q, k, v, heads) + 0.4 * optimized_attention(q, keys, keys, heads)

    for place in (("middle", 0, 0), ("input", 1), ("output", 0)):
        if rng.random() < 0.7:
            model.set_model_attn2_replace(replacement, *place)
    return model


def negpip(model, rng):
    """Words of negative weight: an attn2_patch with more tokens, whose values are negated."""
    model, count = model.clone(), rng.randint(1, 9)

    def patch(n, context, value, extra_options):
        return n, torch.cat([context, context[:, :count] * 0.5], 1), torch.cat([value, -value[:, :count]], 1)

    model.set_model_attn2_patch(patch)
    return model


def attention_couple(model, rng):
    """Positive rows doubled before attn2 with another prompt for the second half, and mixed by a mask after it."""
    model, other, times = model.clone(), randn(rng, 1, 77, 24), rng.choice((2, 3))

    def before(q, context, value, extra_options):
        chunks = extra_options["cond_or_uncond"]
        rows = [], [], []
        for chunk, *parts in zip(chunks, *(x.chunk(len(chunks)) for x in (q, context, value)), strict=True):
            count = times if chunk == 0 else 1
            own = other.expand(parts[0].shape[0], -1, -1)
            length = max(parts[1].shape[1], own.shape[1])
            for n in range(times if 0 in chunks else 1):
                if n < count:
                    texts = parts[1:] if n == 0 else (own * n, own * n)
                    rows[0].append(parts[0])
                    for row, text in zip(rows[1:], texts, strict=True):
                        row.append(text.repeat(1, -(-length // text.shape[1]), 1)[:, :length])
        return tuple(torch.cat(row) for row in rows)

    def after(n, extra_options):
        chunks, rows = extra_options["cond_or_uncond"], []
        size = n.shape[0] // sum(times if chunk == 0 else 1 for chunk in chunks)
        parts = list(n.split(size))
        for chunk in chunks:
            taken = [parts.pop(0) for _ in range(times if chunk == 0 else 1)]
            rows.append(sum(taken) / len(taken))
        return torch.cat(rows)

    model.set_model_attn2_patch(before)
    model.set_model_attn2_output_patch(after)
    return model


def free_u(model, rng):
    return core(freelunch.FreeU_V2, model, 1.3, 1.4, 0.9, 0.2)


def hyper_tile(model, rng):
    return core(hypertile.HyperTile, model, 32, 2, 0, False)


def tome(model, rng):
    return core(tomesd.TomePatchModel, model, 0.3)


def perturbed_attention_guidance(model, rng):
    return core(pag.PerturbedAttentionGuidance, model, 2.0)


def self_attention_guidance(model, rng):
    return core(sag.SelfAttentionGuidance, model, 0.5, 2.0)


def differential_diffusion(model, rng):
    return core(differential.DifferentialDiffusion, model)


def attention_override(model, rng):
    """The single slot that SageAttention and its like use."""
    model = model.clone()
    options = model.model_options["transformer_options"] = model.model_options["transformer_options"].copy()
    options["optimized_attention_override"] = lambda attention, *args, **kwargs: attention(*args, **kwargs) * 0.9
    return model


def function_wrapper(model, rng):
    """The single slot around the network's call."""
    model = model.clone()

    def wrapper(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"]) * 0.95

    model.set_model_unet_function_wrapper(wrapper)
    return model


def replaced_blocks(model, rng):
    """Blocks wrapped by another pack, as caches and skippers do it."""
    model = model.clone()
    for kind in ("double_block", "single_block"):
        for number in range(2):
            if rng.random() < 0.7:
                model.set_model_patch_replace(lambda args, more: more["original_block"](args), "dit", kind, number)
    return model


JOINT_COMPANIONS = [joint_lora, replaced_blocks, attention_override, function_wrapper]
MODEL_COMPANIONS = [
    lora, merge, ip_adapter, negpip, attention_couple, free_u, hyper_tile, tome, perturbed_attention_guidance,
    self_attention_guidance, differential_diffusion, attention_override, function_wrapper,
]  # fmt: skip


def control_net(model):
    """control(conditioning, rng): a ControlNet of the same narrow layout on it."""
    config = {k: v for k, v in model.model.model_config.unet_config.items() if k not in ("out_channels", "dtype")}
    config["transformer_depth_output"] = None
    network = ControlNet(hint_channels=3, dtype=torch.float32, operations=comfy.ops.disable_weight_init, **config)
    _fill(network, 11)
    device = torch.device("cpu")
    return _with_control(lambda: comfy.controlnet.ControlNet(network, load_device=device))


def t2i_adapter(model):
    """control(conditioning, rng): a T2I-adapter of the same narrow layout on it."""
    width = model.model.model_config.unet_config["model_channels"]
    network = Adapter(channels=[width, width * 2, width * 2, width * 2], nums_rb=1, cin=192, ksize=1, sk=True, xl=False)
    _fill(network, 12)
    return _with_control(lambda: comfy.controlnet.T2IAdapter(network, 3, 8, "nearest-exact", torch.device("cpu")))


def _with_control(make):
    def control(conditioning, rng):
        hint = randn(rng, 1, 3, 64, 64).sigmoid()
        controlled = make().set_cond_hint(hint, rng.choice((0.5, 1.0)), (0.0, rng.choice((0.5, 1.0))))
        return [
            [text, options | {"control": controlled, "control_apply_to_uncond": True}] for text, options in conditioning
        ]

    return control


def gligen(model):
    """grounded(conditioning, rng): GLIGEN with one box on it."""
    config = model.model.model_config.unet_config
    blocks = [m for m in model.model.diffusion_model.modules() if type(m).__name__ == "BasicTransformerBlock"]
    layers = [
        comfy.gligen.GatedSelfAttentionDense(block.attn2.to_q.in_features, 24, block.n_heads, block.d_head)
        for block in blocks
    ]
    position = comfy.gligen.PositionNet(24, 24)
    network = comfy.gligen.Gligen(layers, position, 24)
    _fill(network, 13)
    assert config["context_dim"] == 24
    patcher = comfy.model_patcher.ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))

    def grounded(conditioning, rng):
        box = (randn(rng, 1, 24), 4, 4, 2, 2)
        return [[text, options | {"gligen": ("position", patcher, [box])}] for text, options in conditioning]

    return grounded


def _fill(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        scale = 0.1 if parameter.ndim == 1 else 0.7 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    network.requires_grad_(False)
