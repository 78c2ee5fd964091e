"""NASA beside other patches of the same model, in any order."""

import pytest
import torch
from plain_attention import plain_attention

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


def hypernetwork(tmp_path, width=24, activation="relu"):
    """A hypernetwork's file as people share it, loaded by the core: texts for K and for V, each through a network."""
    from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

    generator = torch.Generator().manual_seed(6)

    def weights():
        shapes = {"linear.0": (2 * width, width), "linear.2": (width, 2 * width)}
        return {
            f"{name}.{part}": torch.randn(shape if part == "weight" else shape[:1], generator=generator) * 0.2
            for name, shape in shapes.items()
            for part in ("weight", "bias")
        }

    path = tmp_path / "hypernetwork.pt"
    torch.save({width: [weights(), weights()], "activation_func": activation, "is_layer_norm": False}, path)
    return load_hypernetwork_patch(str(path), 0.8)


def with_attn2_patch(model, patch):
    model = model.clone()
    model.set_model_attn2_patch(patch)
    return model


def of_blocks(patch, model, text, sample):
    """The picture with the formula by hand, where K- and V- read what `patch` makes of the negative."""
    from contextlib import ExitStack

    context, positive = text(2)[0][0], text(1)
    _, keys, values = patch(context, context, context, {})
    queries = {}

    def steer(attn):
        def before_output(_, args):
            q = queries[attn]
            k, v = (part.expand(len(q), -1, -1) for part in (attn.to_k(keys), attn.to_v(values)))
            return (args[0] - 0.4 * plain_attention(q, k, v, attn.heads),)

        return before_output

    with ExitStack() as stack:
        for name, attn in model.model.named_modules():
            if name.endswith(".attn2"):
                remember = lambda _, __, q, attn=attn: queries.__setitem__(attn, q)  # noqa: E731
                stack.callback(attn.to_q.register_forward_hook(remember).remove)
                stack.callback(attn.to_out.register_forward_pre_hook(steer(attn)).remove)
        return sample(with_attn2_patch(model, patch), positive, batch=2)


@pytest.mark.parametrize("kept", [0.0, 100.0])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_hypernetwork_reaches_the_negative(pack, model, text, sample, tmp_path, monkeypatch, order, kept):
    """K- and V- read the negative through it, as K+ and V+ read the positive."""
    monkeypatch.setattr(pack.prompt, "SHARE", kept)
    patch = hypernetwork(tmp_path)
    expected = of_blocks(patch, model, text, sample)
    if order == "before":
        patched = with_attn2_patch(pack.payload.patch(model, text(2), 0.4), patch)
    else:
        patched = pack.payload.patch(with_attn2_patch(model, patch), text(2), 0.4)
    for _ in range(2):
        torch.testing.assert_close(sample(patched, text(1), batch=2), expected, **CLOSE)
    without = of_blocks(lambda q, k, v, options: (q, k, v), model, text, sample)
    assert (expected - without).abs().max() > 0.1


def test_two_hypernetworks_one_after_the_other(pack, model, text, sample, tmp_path):
    first, second = hypernetwork(tmp_path), hypernetwork(tmp_path, activation="tanh")

    def both(q, k, v, options):
        return second(*first(q, k, v, options), options)

    patched = with_attn2_patch(with_attn2_patch(pack.payload.patch(model, text(2), 0.4), first), second)
    torch.testing.assert_close(sample(patched, text(1), batch=2), of_blocks(both, model, text, sample), **CLOSE)


def more_tokens(q, k, v, options):
    return q, torch.cat([k, k[:, :5]], 1), torch.cat([v, -v[:, :5]], 1)


def every_second(q, k, v, options):  # NegPip's own: K and V lie in turn in a text of twice the length
    return q, k[:, 0::2], v[:, 1::2]


def one_of_a_fixed_length(q, k, v, options):
    other = torch.linspace(-1, 1, 77 * 24).view(1, 77, 24).expand(k.shape[0], -1, -1)
    return q, other, other


def by_position(q, k, v, options):
    weight = torch.linspace(0.5, 1.5, k.shape[1])[None, :, None]
    return q, k * weight, v * weight


def needs_its_block(q, k, v, options):
    return q, (k * 2 if options["block"][0] == "middle" else k), v


def needs_the_picture(q, k, v, options):
    return q, k * q.view(q.shape[0], -1, 8, q.shape[-1]).mean(), v


@pytest.mark.parametrize(
    "patch", [more_tokens, every_second, one_of_a_fixed_length, by_position, needs_its_block, needs_the_picture]
)
def test_patches_made_for_the_positive_leave_the_negative(pack, model, text, patch):
    """Whatever is no function of each token by itself: the negative is read as it is."""
    negative = text(2)[0][0]
    assert pack.unet.patched(negative, {"patches": {"attn2_patch": [patch]}, "block": ()}) is negative


def test_a_patch_that_changes_nothing_leaves_the_negatives_bits(pack, model, text, sample):
    same = with_attn2_patch(pack.payload.patch(model, text(2), 0.4), lambda q, k, v, options: (q, k, v))
    assert torch.equal(sample(same, text(1)), sample(pack.payload.patch(model, text(2), 0.4), text(1)))
