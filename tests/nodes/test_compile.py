"""The core's TorchCompileModel node beside NASA.

Newer cores compile without guards on transformer_options; here that is so on every version. The graphs run as they were
traced: the question is how often they are.
"""

import families
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch._inductor.compile_fx import compile_fx


@pytest.fixture
def graphs():
    """The graphs that `compiled` has traced, from none."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


@pytest.fixture
def compiled(graphs):
    """compiled(model, inductor=False) -> a clone that torch.compile traces, and compiles too if by inductor."""

    def eager(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def by_inductor(graph, inputs):
        graphs.append(graph)
        return compile_fx(graph, inputs)

    def no_guard_on_options(guards):
        return ["transformer_options" not in guard.name for guard in guards]

    def compiled(model, inductor=False):
        model, backend = model.clone(), by_inductor if inductor else eager
        set_torch_compile_wrapper(model, backend=backend, options={"guard_filter_fn": no_guard_on_options})
        return model

    return compiled


def with_replacement(model):
    """attn2 replaced everywhere, in the manner of IP-Adapter: such blocks never call attn2's own forward."""
    model = model.clone()

    def replacement(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"]) + 0.3 * q

    for place in (("middle", 0), ("output", 0)):
        model.set_model_attn2_replace(replacement, *place)
    return model


@pytest.mark.parametrize("share, replaced, adaptive", [(100.0, False, False), (0.0, True, False), (0.0, False, True)])
def test_on_off_and_alpha_on_one_compiled_network(
    pack, models, text, sample, monkeypatch, graphs, compiled, share, replaced, adaptive
):
    """NASA acts, changes alpha and prompt without recompiling, and goes, whichever came first."""
    monkeypatch.setattr(pack.prompt, "SHARE", share)
    model, positive = models["one level"], text(1)
    model = with_replacement(model) if replaced else model

    def nasa(model, alpha, seed=2):
        return pack.payload.patch(model, text(seed), alpha, rule="nasa", adaptive=adaptive)

    def check(alpha, seed=2, compiled_first=True):
        both = nasa(compiled(model), alpha, seed) if compiled_first else compiled(nasa(model, alpha, seed))
        expected = sample(nasa(model, alpha, seed), positive)
        torch.testing.assert_close(sample(both, positive), expected, rtol=1e-4, atol=1e-4)
        return len(graphs)

    off = check(0.0)
    on = check(0.5)
    assert on > off > 0
    assert check(0.9, seed=3) == on
    again = check(0.0)
    assert again <= on + replaced  # one graph more where a block was traced with and without
    assert check(0.7, compiled_first=False) == again


@pytest.fixture
def same(pack, compiled):
    """same(model, name, alpha, seed, bar, inductor): whether compiled it gives the picture that it gives."""

    def same(model, name, alpha, seed=2, bar=1e-5, inductor=False):
        positive, negative = families.conditioning(name, 1), families.conditioning(name, seed, tokens=9)
        patched = pack.payload.patch(model, negative, alpha, rule="difference", adaptive=True)
        models = patched, compiled(patched, inductor)
        expected, result = (families.sample(name, model, positive, steps=1, batch=1) for model in models)
        return (result - expected).abs().max() < bar * expected.abs().max()

    return same


@pytest.mark.parametrize("name", ["SD 3.5 medium"])
def test_joint_attention_on_one_compiled_network(graphs, same, name):
    """No graph more for another alpha or prompt, or for going and coming back."""
    model, counts = families.build(name), []
    for alpha, seed in ((0.0, 2), (0.5, 2), (0.9, 3), (0.0, 2)):
        assert same(model, name, alpha, seed)
        counts.append(len(graphs))
    assert 0 < counts[0] < counts[1] == counts[2] == counts[3]


@pytest.mark.parametrize("name", ["SD 3"])
def test_joint_attention_by_inductor(graphs, same, name):
    """One block, of which another alpha or prompt needs no graph more."""
    model = families.build(name, num_blocks=1)
    assert same(model, name, 0.5, bar=1e-4, inductor=True)
    count = len(graphs)
    assert same(model, name, 0.9, seed=3, bar=1e-4, inductor=True) and len(graphs) == count > 0
