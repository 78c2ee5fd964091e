"""FLOPs and peak memory of a call: counted, not timed, so the same on every run."""

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's table has only the GPU's


def _attention_flops(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


class _ShapesOnly(TorchDispatchMode):
    """Operations on large tensors are not done and give whatever lies in memory, of the right shape: it takes seconds.

    Small ones are done, so that the sampler's numbers and the model's decisions are real.
    """

    LARGE = 2**19  # elements: more than any text or latent has

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        in_place = func._schema.is_mutable and func._schema.name.endswith("_")
        done = func.is_view or (func._schema.is_mutable and not in_place) or kwargs.get("device") is not None
        if done or all(tensor.numel() < self.LARGE for tensor in tensors):
            return func(*args, **kwargs)
        if in_place:
            return args[0]
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        device = tensors[0].device
        return tree_map_only(torch.Tensor, lambda like: torch.empty_like(like, device=device), func(*args, **kwargs))


def flops(call: Callable[[], object]) -> int:
    """FLOPs of matrix products, convolutions and attention during `call`, whose results are not real."""
    with _ShapesOnly(), FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: _attention_flops}) as counter:
        call()
    return counter.get_total_flops()


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that torch's allocator holds at one time during `call`, above what it held before.

    On the CPU from the profiler's account of every tensor: the same to the byte on every run. The resident set, which
    has the C library's arenas, threads' stacks and mapped files in it, moves by more than the 1% in question.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    events = _flat(profiler.profiler.kineto_results.experimental_event_tree())
    return max(event.extra_fields.total_allocated for event in events if event.name == "[memory]")


def _flat(events: Iterable) -> Iterable:
    for event in events:
        yield event
        yield from _flat(event.children)
