"""NASA against the formula written out, on every supported layout, and what it must leave alone."""

import comfy.model_management
import pytest
import torch

CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # x0 reaches 40


@pytest.mark.parametrize("family", ["SD 1.5", "SD 2.1", "SDXL"])
@pytest.mark.parametrize("tokens", [77, 154])
def test_formula(pack, models, text, sample, truth, family, tokens):
    model = models[family]
    width = model.model.model_config.unet_config["context_dim"]
    positive, negative = text(1, width=width), text(2, tokens=tokens, width=width)
    with truth(model, negative[0][0], 0.4):
        expected = sample(model, positive, steps=3, batch=3)
    plain = sample(model, positive, steps=3, batch=3)
    steered = sample(pack.payload.patch(model, negative, 0.4), positive, steps=3, batch=3)
    torch.testing.assert_close(steered, expected, **CLOSE)
    assert (steered - plain).abs().max() > 0.05
    assert torch.equal(sample(model, positive, steps=3, batch=3), plain)


def test_every_attn2_is_found(pack, models):
    for model in models.values():
        blocks = pack.unet.blocks(model.model.diffusion_model)
        found = [layer.attention for layers in blocks.values() for layer in layers]
        named = [m for name, m in model.model.named_modules() if name.endswith(".attn2")]
        assert set(found) == set(named) and len(found) == len(named) > 0


def test_alpha_zero_is_bit_identical(pack, model, text, sample):
    positive, negative = text(1), text(2)
    plain = sample(model, positive, text(3), cfg=4, steps=2)
    assert torch.equal(sample(pack.payload.patch(model, negative, 0.0), positive, text(3), cfg=4, steps=2), plain)


def test_a_small_alpha_is_a_small_change(pack, model, text, sample):
    plain = sample(model, text(1))
    near, far = (sample(pack.payload.patch(model, text(2), alpha), text(1)) for alpha in (0.01, 0.5))
    assert 0 < (near - plain).abs().mean() < (far - plain).abs().mean() / 5


def test_the_model_that_came_in_is_untouched(pack, model, text, sample):
    options, wrappers, patches = str(model.model_options), str(model.wrappers), dict(model.object_patches)
    plain = sample(model, text(1), steps=2)
    sample(pack.payload.patch(model, text(2), 0.5), text(1), steps=2)
    assert torch.equal(sample(model, text(1), steps=2), plain)
    assert (str(model.model_options), str(model.wrappers), dict(model.object_patches)) == (options, wrappers, patches)


@pytest.mark.parametrize("error", [RuntimeError, comfy.model_management.InterruptProcessingException])
def test_nothing_stays_behind_after_an_error_or_cancel(pack, model, text, sample, error):
    plain = sample(model, text(1), steps=3)
    patched = pack.payload.patch(model, text(2), 0.5)
    whole = sample(patched, text(1), steps=3)
    attn = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2

    def inside(*_):
        assert hasattr(attn.to_out, "nasa")  # raised while NASA is installed
        raise error()

    handle = attn.to_out.register_forward_pre_hook(inside)
    with pytest.raises(error):
        sample(patched, text(1), steps=3)
    handle.remove()
    assert torch.equal(sample(model, text(1), steps=3), plain)

    def between(step, *_):
        if step == 1:
            raise error()

    with pytest.raises(error):
        sample(patched, text(1), steps=3, callback=between)
    assert torch.equal(sample(model, text(1), steps=3), plain)
    assert torch.equal(sample(patched, text(1), steps=3), whole)


def test_patching_twice_replaces(pack, model, text, sample):
    patch = pack.payload.patch
    once = sample(patch(model, text(3), 0.3), text(1))
    assert torch.equal(sample(patch(patch(model, text(2), 0.7), text(3), 0.3), text(1)), once)
    assert torch.equal(sample(patch(patch(model, text(2), 0.7), text(3), 0.0), text(1)), sample(model, text(1)))


def test_two_clones_in_one_graph(pack, model, text, sample):
    first, second = pack.payload.patch(model, text(2), 0.5), pack.payload.patch(model, text(3), 0.5)
    alone = sample(first, text(1)), sample(second, text(1))
    again = sample(first, text(1)), sample(second, text(1))
    assert all(map(torch.equal, alone, again))
    assert not torch.equal(*alone)


@pytest.mark.parametrize("start, end, steered_steps", [(0.0, 0.3, [0]), (0.3, 1.0, [1, 2]), (0.3, 0.5, [1])])
def test_start_and_end(pack, model, text, sample, start, end, steered_steps):
    """4 steps of the simple schedule lie at 0, 0.25, 0.5 and 0.75; 3 at 0, 0.333 and 0.667."""
    attn = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    seen = []
    handle = attn.to_out.register_forward_pre_hook(lambda *_: seen.append(hasattr(attn.to_out, "nasa")))
    sample(pack.payload.patch(model, text(2), 0.5, start, end), text(1), steps=3)
    handle.remove()
    assert [step for step, steered in enumerate(seen) if steered] == steered_steps


def test_outside_its_range_it_is_bit_identical(pack, model, text, sample):
    """One step starts at sigma_max, before 0.2."""
    assert torch.equal(sample(pack.payload.patch(model, text(2), 0.5, 0.2, 1.0), text(1)), sample(model, text(1)))


@pytest.mark.parametrize(
    "weights, cast, tolerance", [(torch.float16, torch.float32, 1e-4), (torch.bfloat16, None, 0.02)]
)
def test_the_payload_follows_the_models_dtype(pack, build_model, text, sample, truth, weights, cast, tolerance):
    """Wrappers see conds before ComfyUI casts them to the dtype the model computes in."""
    model = build_model("one level", weights, cast)
    positive, negative = text(1), text(2)
    plain = sample(model, positive)
    with truth(model, negative[0][0].to(cast or weights), 0.4):
        expected = sample(model, positive)
    steered = sample(pack.payload.patch(model, negative, 0.4), positive)
    scale = (expected - plain).abs().max()
    assert scale > 0.1
    assert (steered - expected).abs().mean() < tolerance * scale
