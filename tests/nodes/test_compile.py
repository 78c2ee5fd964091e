"""The core's TorchCompileModel node beside NASA."""

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.torch_helpers import set_torch_compile_wrapper


def with_replacement(model):
    """attn2 replaced everywhere, in the manner of IP-Adapter: such blocks never call attn2's own forward."""
    model = model.clone()

    def replacement(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"]) + 0.3 * q

    for place in (("input", 1), ("middle", 0), ("output", 0), ("output", 1)):
        model.set_model_attn2_replace(replacement, *place)
    return model


@pytest.mark.parametrize(
    "share, replaced, adaptive", [(100.0, False, False), (0.0, True, False), (0.0, False, True), (100.0, True, True)]
)
def test_on_off_and_alpha_on_one_compiled_network(pack, models, text, sample, monkeypatch, share, replaced, adaptive):
    """NASA acts, changes alpha and prompt without recompiling, and goes, whichever came first.

    Newer cores compile without guards on transformer_options; here that is so on every version.
    """
    monkeypatch.setattr(pack.prompt, "SHARE", share)
    model, graphs, positive = models["one level"], [], text(1)
    model = with_replacement(model) if replaced else model

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def no_guard_on_options(guards):
        return ["transformer_options" not in guard.name for guard in guards]

    def compiled(model):
        model = model.clone()
        set_torch_compile_wrapper(model, backend=backend, options={"guard_filter_fn": no_guard_on_options})
        return model

    def nasa(model, alpha, seed=2):
        return pack.payload.patch(model, text(seed), alpha, rule="nasa", adaptive=adaptive)

    def check(alpha, seed=2, compiled_first=True):
        both = nasa(compiled(model), alpha, seed) if compiled_first else compiled(nasa(model, alpha, seed))
        expected = sample(nasa(model, alpha, seed), positive)
        torch.testing.assert_close(sample(both, positive), expected, rtol=1e-4, atol=1e-4)
        return len(graphs)

    torch._dynamo.reset()
    try:
        off = check(0.0)
        on = check(0.5)
        assert on > off > 0
        assert check(0.9) == check(0.9, seed=3) == on
        again = check(0.0)
        assert again <= on + replaced  # one graph more where a block was traced with and without
        assert check(0.5, compiled_first=False) == check(0.0) == check(0.7) == again
    finally:
        torch._dynamo.reset()
