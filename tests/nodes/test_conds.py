"""Which conds are steered, by every guider; batches, areas, masks and several negatives."""

import comfy.samplers
import comfy_extras.nodes_custom_sampler as guiders
import comfy_extras.nodes_perpneg as perpneg
import node_helpers
import pytest
import torch

CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # x0 reaches 40 and CFG multiplies its rounding
ALPHA = 0.4


@pytest.fixture
def parts(pack, model, text, sample, truth):
    """A patched model and one-step results of its prompts, each alone: positive by the hooked truth, others plain."""
    nasa = text(9)
    conds = {"positive": text(1), "middle": text(2), "negative": text(3)}
    with truth(model, nasa[0][0], ALPHA):
        positive = sample(model, conds["positive"])
    x0 = {"positive": positive, "middle": sample(model, conds["middle"]), "negative": sample(model, conds["negative"])}
    assert (positive - sample(model, conds["positive"])).abs().max() > 0.5
    return pack.payload.patch(model, nasa, ALPHA), conds, x0


def test_basic_guider(parts, sample):
    patched, conds, x0 = parts
    (guider,) = guiders.BasicGuider.execute(patched, conds["positive"]).args
    torch.testing.assert_close(sample(guider), x0["positive"], **CLOSE)


def test_cfg_steers_the_positive_only_in_one_call(parts, model, sample, calls):
    patched, conds, x0 = parts
    with calls(model) as plain:
        sample(model, conds["positive"], conds["negative"], cfg=4)
    with calls(model) as steered:
        result = sample(patched, conds["positive"], conds["negative"], cfg=4)
    assert steered == plain == [2]
    torch.testing.assert_close(result, x0["negative"] + 4 * (x0["positive"] - x0["negative"]), **CLOSE)


def test_cfg_with_prompts_of_different_length_stays_one_call(pack, model, text, sample, calls):
    patched = pack.payload.patch(model, text(9, tokens=231), ALPHA)
    with calls(model) as sizes:
        sample(patched, text(1, tokens=154), text(3), cfg=4, batch=3)
    assert sizes == [6]


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg_guider(parts, sample, style):
    """It runs the negative first; its middle prompt counts as negative."""
    patched, conds, x0 = parts
    (guider,) = guiders.DualCFGGuider.execute(
        patched, conds["positive"], conds["middle"], conds["negative"], 3.0, 2.0, style
    ).args
    p, m, n = x0["positive"], x0["middle"], x0["negative"]
    expected = n + 2 * (m - n) + 3 * (p - m) if style == "regular" else n + 2 * (m + 3 * (p - m) - n)
    torch.testing.assert_close(sample(guider), expected, **CLOSE)


def test_perp_neg_guider(parts, sample):
    patched, conds, x0 = parts
    (guider,) = perpneg.PerpNegGuider.execute(
        patched, conds["positive"], conds["negative"], conds["middle"], 3.0, 0.7
    ).args
    expected = perpneg.perp_neg(None, x0["positive"], x0["negative"], x0["middle"], 0.7, 3.0)
    torch.testing.assert_close(sample(guider), expected, **CLOSE)


def test_a_guider_with_names_of_its_own(parts, sample):
    class Sum(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options, seed=None):
            conds = [self.conds["uncond negative"], self.conds["first"], self.conds["positive 2"]]
            n, a, b = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
            return a + b - n

    patched, conds, x0 = parts
    guider = Sum(patched)
    guider.inner_set_conds(
        {"uncond negative": conds["negative"], "first": conds["positive"], "positive 2": conds["positive"]}
    )
    torch.testing.assert_close(sample(guider), 2 * x0["positive"] - x0["negative"], **CLOSE)


def test_positive_areas_with_a_negative_of_another_length(pack, model, text, sample, truth):
    areas = [(8, 8, 0, 0), (8, 8, 0, 8)]
    positive = [cond for n, area in enumerate(areas) for cond in text(n, area=area, strength=1.0)]
    negative = text(9, tokens=154)
    with truth(model, negative[0][0], ALPHA):
        expected = sample(model, positive, size=16)
    result = sample(pack.payload.patch(model, negative, ALPHA), positive, text(3), size=16)
    torch.testing.assert_close(result[:, :, :8], expected[:, :, :8], **CLOSE)
    guided = sample(pack.payload.patch(model, negative, ALPHA), positive, text(3), cfg=3, size=16)
    plain = sample(model, positive, text(3), cfg=3, size=16)
    torch.testing.assert_close((guided - plain)[:, :, :8], 3 * (result - sample(model, positive, size=16))[:, :, :8],
                               **CLOSE)  # fmt: skip
    torch.testing.assert_close(guided[:, :, 8:], plain[:, :, 8:])  # no positive, so nothing to steer


def test_batched_negative_gives_each_picture_its_own(pack, model, text, sample):
    negative = text(9, batch=2)
    both = sample(pack.payload.patch(model, negative, ALPHA), text(1), batch=2)
    for n in range(2):
        alone = sample(pack.payload.patch(model, [[negative[0][0][n : n + 1], {}]], ALPHA), text(1), batch=2)
        torch.testing.assert_close(both[n], alone[n], **CLOSE)


def test_several_negatives_act_as_their_mean(pack, model, text, sample):
    one, other = text(8), text(9)
    twice = sample(pack.payload.patch(model, one + one, ALPHA), text(1))
    torch.testing.assert_close(twice, sample(pack.payload.patch(model, one, ALPHA), text(1)), **CLOSE)
    both = sample(pack.payload.patch(model, one + other, ALPHA), text(1))
    for single in (one, other):
        assert (both - sample(pack.payload.patch(model, single, ALPHA), text(1))).abs().max() > 1e-2


def test_strength_of_a_negative_scales_alpha(pack, model, text, sample):
    half = sample(pack.payload.patch(model, text(9, strength=0.5), ALPHA), text(1))
    torch.testing.assert_close(half, sample(pack.payload.patch(model, text(9), ALPHA / 2), text(1)), **CLOSE)


@pytest.mark.parametrize("kind", ["mask", "area"])
def test_a_negative_for_a_part_of_the_picture(pack, model, text, sample, kind):
    """Each layer is steered in that part only; all of it is the same as no part, none of it as no negative."""
    attn = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2
    inputs = []
    handle = attn.to_out.register_forward_pre_hook(lambda _, args: inputs.append(args[0].unflatten(1, (16, 16))))

    def negative(rows):
        mask = torch.zeros(1, 16, 16)
        mask[:, :rows] = 1
        part = {"mask": mask, "mask_strength": 1.0} if kind == "mask" else {"area": (rows, 16, 0, 0), "strength": 1.0}
        return text(9, **part)

    sample(model, text(1), size=16)
    whole = sample(pack.payload.patch(model, text(9), ALPHA), text(1), size=16)
    result = sample(pack.payload.patch(model, negative(16), ALPHA), text(1), size=16)
    torch.testing.assert_close(result, whole, **CLOSE)
    sample(pack.payload.patch(model, negative(8), ALPHA), text(1), size=16)
    handle.remove()
    plain, steered, _, half = inputs
    torch.testing.assert_close(half[:, :4], steered[:, :4], **CLOSE)
    torch.testing.assert_close(half[:, 8:], plain[:, 8:], **CLOSE)
    if kind == "mask":
        nothing = sample(pack.payload.patch(model, negative(0), ALPHA), text(1), size=16)
        torch.testing.assert_close(nothing, sample(model, text(1), size=16), **CLOSE)


def test_a_negative_part_meets_a_positive_area(pack, model, text, sample):
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    masked = text(9, mask=mask, mask_strength=1.0)

    def run(negative, row):
        positive = text(1, area=(8, 16, row, 0), strength=1.0) + text(2)
        return sample(pack.payload.patch(model, negative, ALPHA), positive, size=16)

    assert torch.isfinite(run(masked, 0)).all()
    lower = text(2, area=(8, 16, 8, 0), strength=1.0)
    inside = sample(pack.payload.patch(model, masked, ALPHA), lower, size=16)
    torch.testing.assert_close(inside, sample(model, lower, size=16), **CLOSE)


def test_negatives_with_step_ranges(pack, model, text, sample):
    """The negative's own range and the node's both count."""
    early, late = text(8, start_percent=0.0, end_percent=0.3), text(9, start_percent=0.3, end_percent=1.0)
    seen = []
    attn = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2
    handle = attn.to_out.register_forward_pre_hook(
        lambda *_: seen.append(len(attn.to_out.nasa.strengths) if hasattr(attn.to_out, "nasa") else 0)
    )
    sample(pack.payload.patch(model, early + late + text(5), ALPHA, 0.0, 0.5), text(1), steps=3)
    handle.remove()
    assert seen == [2, 2, 0]


def test_controlnet_and_hooks_of_a_negative_are_left_out(pack, model, text, sample):
    class Control:
        def __getattr__(self, name):
            raise AssertionError(f"the negative's ControlNet was asked for {name}")

    negative = node_helpers.conditioning_set_values(text(9), {"control": Control(), "control_apply_to_uncond": False})
    result = sample(pack.payload.patch(model, negative, ALPHA), text(1))
    assert torch.equal(result, sample(pack.payload.patch(model, text(9), ALPHA), text(1)))
