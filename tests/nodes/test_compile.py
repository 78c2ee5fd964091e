"""The core's TorchCompileModel node beside NASA."""

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper


def test_on_off_and_alpha_on_one_compiled_network(pack, models, text, sample):
    """NASA acts, changes alpha and prompt without recompiling, and goes, whichever came first.

    Newer cores compile without guards on transformer_options; here that is so on every version.
    """
    model, graphs, positive = models["one level"], [], text(1)

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
        return pack.payload.patch(model, text(seed), alpha)

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
        assert check(0.9) == check(0.9, seed=3) == check(0.0) == check(0.5, compiled_first=False) == on
    finally:
        torch._dynamo.reset()
