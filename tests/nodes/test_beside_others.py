"""NASA beside other patches of the same model, in any order."""

import pytest
import torch

CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # x0 reaches 40 and CFG multiplies its rounding


@pytest.fixture
def with_replacement(model):
    """An attn2 replacement in the manner of IP-Adapter: the prompt's attention and something added."""
    from comfy.ldm.modules.attention import optimized_attention

    def replacement(q, k, v, extra_options):
        return optimized_attention(q, k, v, extra_options["n_heads"]) + 0.3 * q

    def with_replacement(model):
        model = model.clone()
        model.set_model_attn2_replace(replacement, "middle", 0, 0)
        model.set_model_attn2_replace(replacement, "input", 1)
        return model

    return with_replacement


@pytest.fixture
def with_lora(model):
    def with_lora(model):
        model = model.clone()
        generator = torch.Generator().manual_seed(5)
        for name, weight in model.model.state_dict().items():
            if "attn2.to_k" in name or "attn2.to_v" in name:
                model.add_patches({name: ("diff", (torch.randn(weight.shape, generator=generator) * 0.2,))}, 1.0)
        return model

    return with_lora


@pytest.fixture
def with_longer_text(model):
    """An attn2_patch that adds tokens, in the manner of NegPip."""

    def patch(n, context, value, extra_options):
        return n, torch.cat([context, context[:, :5] * 0.5], 1), torch.cat([value, -value[:, :5]], 1)

    def with_longer_text(model):
        model = model.clone()
        model.set_model_attn2_patch(patch)
        return model

    return with_longer_text


@pytest.mark.parametrize("other", ["with_replacement", "with_lora", "with_longer_text"])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_before_and_after(pack, model, text, sample, truth, request, other, cfg):
    other = request.getfixturevalue(other)
    positive, uncond, negative = text(1), text(3), text(2)
    without = sample(model, positive, uncond, cfg, batch=2)
    plain = sample(other(model), positive, uncond, cfg, batch=2)
    unconditional = sample(other(model), uncond, batch=2)
    with truth(model, negative[0][0], 0.4):
        conditional = sample(other(model), positive, batch=2)
    expected = unconditional + cfg * (conditional - unconditional)
    before = sample(pack.payload.patch(other(model), negative, 0.4), positive, uncond, cfg, batch=2)
    after = sample(other(pack.payload.patch(model, negative, 0.4)), positive, uncond, cfg, batch=2)
    torch.testing.assert_close(before, expected, **CLOSE)
    assert torch.equal(before, after)
    assert (plain - without).abs().max() > 0.1 and (before - plain).abs().max() > 0.1
    assert torch.equal(sample(model, positive, uncond, cfg, batch=2), without)


def test_another_forward_on_the_module_comes_back(pack, model, text, sample):
    attn = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    original = attn.forward
    attn.forward = theirs = lambda *args, **kwargs: original(*args, **kwargs)
    try:
        sample(pack.payload.patch(model, text(2), 0.4), text(1))
        assert attn.forward is theirs
    finally:
        del attn.forward


def test_attention_override_sees_both_prompts(pack, model, text, sample):
    """optimized_attention_override (SageAttention and others) is left in its slot and used for Z- too."""
    lengths = []

    def override(attention, q, k, v, *args, **kwargs):
        lengths.append(k.shape[1])
        return attention(q, k, v, *args, **kwargs)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(pack.payload.patch(model, text(2, tokens=154), 0.4), text(1))
    assert lengths.count(77) == lengths.count(154) > 0
