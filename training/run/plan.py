"""What a run would take, computed from the networks' configs on torch's meta device: no weights are loaded.

Counted: parameters, their gradients and optimiser states, the activations that a backward pass keeps, and the
arithmetic of one step. Not counted: what single layers need while they run, and what the allocator leaves unused.
"""

from dataclasses import dataclass

import torch
import yaml
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..method.guidance import unequal_scales
from ..networks.adapter import add_adapter
from ..networks.backbones import backbone_class
from ..networks.sharding import gathered_at_once
from ..prompts.repeats import LISTS, NEGATIVE_LISTS, few_prompts_before_a_run
from ..recipe.config import Config, to_dict
from ..recipe.savings import remedies
from .machine import OPTIMIZER_BYTES, precision_of, share_of

GIB = 2**30
#: Peak dense bf16 arithmetic of single GPUs, by their makers, TFLOP/s; a training step reaches some 40% of it.
PEAKS = {"RTX 4090": 165, "A100": 312, "H100": 989}
REACHED = 0.4
CARD = 24  # GB of the cards that people have


@dataclass
class Plan:
    """parameters: {network: count}; memory: {use: bytes} on each GPU; flops: of one step of the whole batch."""

    parameters: dict[str, int]
    memory: dict[str, float]
    flops: float
    steps: int


def plan(config: Config, processes: int = 1) -> Plan:
    """Raises UserError if the teacher's config cannot be had."""
    backbone = backbone_class(config.backbone)
    backbone.check_start(config.start.timestep, config.start.noise)
    described = backbone.describe(config.teacher, config.teacher_parts)
    bf16 = precision_of(config.mixed_precision, config.device) == "bf16"
    with torch.device("meta"):
        network = backbone.network_class.from_config(described)
        teacher = backbone.network_class.from_config(described)
        denoiser = _count(teacher)
        lora = _count(add_adapter(teacher, config.lora), trainable=True)
    _, batch = share_of(config.batch_size, config.micro_batch, processes)
    shape = described["in_channels"], *(config.latent_size or backbone.own_size(described))
    sample = backbone.bare(network)
    forward = _forward_flops(sample, shape)
    kept = _activations(sample, shape, batch, bf16, config.gradient_checkpointing)

    adapter = config.student.lora
    trained = denoiser
    if adapter:
        with torch.device("meta"):
            trained = _count(add_adapter(backbone.network_class.from_config(described), adapter), trainable=True)
    states = OPTIMIZER_BYTES[config.optimizer]
    frozen = 2 if bf16 else 4
    sharded = config.student.shard and processes > 1
    held = trained / processes if sharded else trained  # of the student, by each process
    memory = {
        "student, fp32": 4.0 * held,
        "student's gradients": 4.0 * held,
        f"student's {config.optimizer} states": states * held,
        "both teachers, one frozen network": frozen * denoiser,
        "LoRA teacher: weights, gradients, optimiser": (8 + states) * lora,
        "activations kept for one backward": kept,
    }
    if sharded:
        memory["student's weights gathered while they are used"] = 4.0 * gathered_at_once(network)
    if adapter:
        memory["frozen network below the student's LoRA"] = frozen * denoiser
    elif bf16:
        memory["student's bf16 copies in autocast"] = 2.0 * denoiser
    if config.student.ema_decay is not None and config.student.ema_device == "same":
        memory["average of the student (EMA)"] = 4.0 * held
    return Plan(
        {"denoiser": denoiser, "student, trainable": trained, "LoRA teacher, trainable": lora},
        memory,
        config.batch_size * forward * network_forwards(config),
        config.total_steps,
    )


def network_forwards(config: Config) -> float:
    """What one VSD step costs, in forwards of the denoiser a sample; a backward counts 2, through frozen weights 1."""
    again = 1 if config.gradient_checkpointing else 0
    earlier = (config.start.steps - 1) / 2  # of the student's own steps, on average
    student = earlier + 1 + again + (1 if config.student.lora else 2)
    guided = {"both": 4, "teacher": 3, "lora": 3, "none": 2}[config.cfg_on]
    if config.fixed_kappa != 1:
        guided = 4
    lora = config.lora.updates * (2 + again) + (config.lora.updates - 1) * (1 + earlier) * config.lora.fresh
    return student + guided + lora


def report(config: Config, processes: int = 1) -> str:
    """What --dry-run prints: the resolved config, the computed figures, what is wrong with the prompts."""
    planned = plan(config, processes)
    lines = ["# The resolved config", yaml.safe_dump(to_dict(config), sort_keys=False)]
    if sentence := unequal_scales(config.cfg_on, config.kappa, config.fixed_kappa, config.kappa_lora):
        lines.append(f"warning: {sentence}\n")
    lines.append("# Computed from the networks' configs, not measured")
    lines += [f"{name + ':':44}{count / 1e6:10.1f} M parameters" for name, count in planned.parameters.items()]
    lines += [f"{name + ':':44}{size / GIB:10.2f} GiB" for name, size in planned.memory.items()]
    lines.append(f"{'together, on each GPU:':44}{sum(planned.memory.values()) / GIB:10.2f} GiB")
    fits = sum(planned.memory.values()) / GIB < CARD
    told = "fits" if fits else f"does not fit; {remedies(config)}"
    lines.append(f"{f'a card of {CARD} GB:':44}{told}")
    lines.append("  (the text encoder, the autoencoder, CLIP and the working memory of single layers come on top)")
    forwards = network_forwards(config)
    lines.append(f"{'arithmetic of a step:':44}{planned.flops / 1e12:10.1f} TFLOP, {forwards:g} forwards a sample")
    for name, peak in PEAKS.items():
        hours = planned.flops * planned.steps / (peak * 1e12 * REACHED) / 3600
        use = f"{planned.steps} steps on {processes} {name}:"
        lines.append(f"{use:44}{hours / processes:10.0f} hours at {REACHED:.0%} of {peak} TFLOP/s")
    of_prompts = (config.prompt_column, config.skip_bad_prompts)
    few = [few_prompts_before_a_run(config.prompts, config.samples, LISTS, *of_prompts)]
    if config.nasa:
        few.append(few_prompts_before_a_run(config.nasa.prompts, config.samples, NEGATIVE_LISTS))
    lines += [f"warning: {sentence}" for sentence in few if sentence]
    return "\n".join(lines)


class FusedAttention(TorchFunctionMode):
    """Attention keeps what the fused kernels of GPUs and CPUs keep; the meta device has only the plain form, which
    keeps all attention weights."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is nn.functional.scaled_dot_product_attention:
            return _Attention.apply(*(arguments or (named["query"], named["key"], named["value"]))[:3])
        return function(*arguments, **(named or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)  # of the softmax, a row each
        context.save_for_backward(query, key, value, output, sums)
        return output


def _count(network: nn.Module, trainable: bool = False) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad or not trainable)


def _call(backbone, shape: tuple[int, int, int], batch: int, dtype: torch.dtype) -> Tensor:
    with torch.device("meta"):
        text = backbone.text_shape.filled(lambda shape: torch.empty(shape, dtype=dtype), batch)
        t = torch.zeros(batch, dtype=torch.long)
        return backbone.output(backbone.network, torch.empty(batch, *shape, dtype=dtype), t, text)


def _forward_flops(backbone, shape: tuple[int, int, int]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _call(backbone, shape, 1, torch.float32)
    return counter.get_total_flops()


def forward_flops(kind: str, source: str, parts: str | None = None) -> int:
    """Of one forward of one picture, by the model's config. kind: the setting `backbone`. Raises UserError."""
    backbone = backbone_class(kind)
    described = backbone.describe(source, parts)
    with torch.device("meta"):
        network = backbone.network_class.from_config(described)
    return _forward_flops(backbone.bare(network), (described["in_channels"], *backbone.own_size(described)))


def _activations(backbone, shape: tuple[int, int, int], batch: int, bf16: bool, checkpointing: bool) -> float:
    """Bytes that a backward of the student keeps; with checkpointing the inputs of every block and the largest one."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    network = backbone.network.to(dtype)
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
    kept: dict[int, int] = {}  # by storage, since views share one

    def keep(found: dict[int, int], alive: list[Tensor], tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # an address that is still in use cannot be given out again
        return tensor

    alive: list[Tensor] = []
    largest = 0

    def block(module, *arguments):
        nonlocal largest
        for argument in arguments:
            if isinstance(argument, Tensor):
                keep(kept, alive, argument)
        inside: dict[int, int] = {}
        inside_alive: list[Tensor] = []
        with saved_tensors_hooks(lambda tensor: keep(inside, inside_alive, tensor), lambda tensor: tensor):
            result = module(*arguments)
        largest = max(largest, sum(inside.values()))
        return result

    if checkpointing:
        network.enable_gradient_checkpointing(block)
    with FusedAttention(), saved_tensors_hooks(lambda tensor: keep(kept, alive, tensor), lambda tensor: tensor):
        output = _call(backbone, shape, batch, dtype)
    del output
    return sum(kept.values()) + largest
