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


def in_sub_batches(model, windows):
    """As AnimateDiff-Evolved runs its windows: latents, and whatever tensor of the conds has a row for each frame."""
    model = model.clone()

    def cut(value, frames, window):
        if isinstance(value, dict):
            return {key: cut(part, frames, window) for key, part in value.items()}
        if torch.is_tensor(getattr(value, "cond", None)) and value.cond.shape[0] == frames:
            return value._copy_with(value.cond[window])
        return value[window] if torch.is_tensor(value) and value.shape[0] == frames else value

    def calc_cond_batch(args):
        x, outs = args["input"], None
        for window in windows:
            conds = [cond and [cut(entry, len(x), window) for entry in cond] for cond in args["conds"]]
            parts = comfy.samplers.calc_cond_batch(
                args["model"], conds, x[window], args["sigma"][window], args["model_options"]
            )
            outs = outs or [torch.zeros_like(x) for _ in parts]
            for out, part in zip(outs, parts, strict=True):
                out[window] = part
        return outs

    model.model_options["sampler_calc_cond_batch_function"] = calc_cond_batch
    return model


def in_core_windows(model, windows):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    names = {part.id for part in ContextWindowsManualNode.GET_SCHEMA().inputs}
    newer = {"freenoise": False} if "freenoise" in names else {}
    model = ContextWindowsManualNode.execute(
        model, len(windows[0]), 0, "batched", 1, False, "pyramid", dim=0, **newer
    ).args[0]
    if not newer:  # 0.3.75 compares all sigmas with those of the batch, and has no other way to take a batch
        model.model_options["context_handler"].set_step = lambda *_: None
    return model


def in_halves(model, windows):
    """The single slot around the network's call, used to save memory."""
    model = model.clone()

    def halves(apply_model, args):
        def part(value, rows):
            return value[rows] if torch.is_tensor(value) and value.shape[0] == len(args["input"]) else value

        return torch.cat([
            apply_model(args["input"][rows], args["timestep"][rows], **{k: part(v, rows) for k, v in args["c"].items()})
            for rows in (slice(0, len(args["input"]) // 2), slice(len(args["input"]) // 2, None))
        ])  # fmt: skip

    model.set_model_unet_function_wrapper(halves)
    return model


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("rows", [8, 3])
@pytest.mark.parametrize("way", [in_sub_batches, in_core_windows, in_halves])
def test_every_frame_gets_its_own_negative_in_windows(pack, model, text, sample, way, rows, cfg):
    """8 frames, windows of 4: each frame as alone with its negative, by its own index; 3 negatives take turns."""
    windows = [[0, 1, 2, 3], [4, 5, 6, 7]]
    negative, positive, uncond = text(9, batch=rows), text(1), text(3)
    result = sample(way(pack.payload.patch(model, negative, ALPHA), windows), positive, uncond, cfg, batch=8)
    for frame in range(8):
        own = [[negative[0][0][frame % rows : frame % rows + 1], {}]]
        alone = sample(pack.payload.patch(model, own, ALPHA), positive, uncond, cfg, batch=8)[frame]
        torch.testing.assert_close(result[frame], alone, **CLOSE)
    assert (result[4] - sample(pack.payload.patch(model, [[negative[0][0][:1], {}]], ALPHA), positive, uncond, cfg,
                               batch=8)[4]).abs().max() > 0.1  # fmt: skip


def test_every_frame_gets_its_own_mask_in_windows(pack, model, text, sample):
    masks = torch.zeros(8, 8, 8)
    for frame in range(8):
        masks[frame, frame:] = 1
    negative, windows = text(9, batch=8, mask=masks, mask_strength=1.0), [[5, 0, 2], [1, 3, 4, 6, 7]]
    result = sample(in_sub_batches(pack.payload.patch(model, negative, ALPHA), windows), text(1), batch=8)
    whole = sample(pack.payload.patch(model, negative, ALPHA), text(1), batch=8)
    torch.testing.assert_close(result, whole, **CLOSE)


def left_of(size=16):
    mask = torch.zeros(1, size, size)
    mask[..., : size // 2] = 1
    return mask


def acting(pack, negative, size=16):
    """[entries, size, size]: how strongly each entry of a negative acts where, at alpha 1."""
    noise = torch.zeros(1, 4, size, size)
    regions = []
    for _, options in negative:
        conds = [options]
        comfy.samplers.resolve_areas_and_cond_masks_multidim(conds, noise.shape[2:], noise.device)
        regions.append(pack.regions.region(conds[0] | {"uuid": 0}, noise))
    shares = pack.regions.shares(regions, ["default" in options for _, options in negative])
    return torch.stack([torch.as_tensor(share).expand(1, 1, size, size)[0, 0] for share in shares])


@pytest.mark.parametrize(
    "entries, left, right",
    [
        ([{"mask": left_of()}, {"default": True}], (1, 0), (0, 1)),
        ([{"default": True}, {"mask": left_of()}], (0, 1), (1, 0)),
        ([{"mask": left_of(), "mask_strength": 0.3}, {"default": True}], (0.3, 0.7), (0, 1)),
        ([{"mask": left_of(), "mask_strength": 2.0}, {"default": True}], (1, 0), (0, 1)),
        ([{"mask": left_of()}, {"mask": left_of()}, {"default": True}], (0.5, 0.5, 0), (0, 0, 1)),
        ([{"mask": left_of()}, {"default": True}, {"default": True}], (1, 0, 0), (0, 0.5, 0.5)),
        ([{"mask": left_of()}, {"default": True, "mask": left_of(), "strength": 0.1}], (1, 0), (0, 1)),
        ([{}, {"default": True}], (1, 0), (1, 0)),
        ([{"strength": 0.25}, {"default": True}], (0.25, 0.75), (0.25, 0.75)),
        ([{"default": True}], (1,), (1,)),
        ([{"default": True}, {"default": True, "strength": 0.5}], (0.5, 0.5), (0.5, 0.5)),
    ],
)
def test_a_default_negative_acts_where_the_others_leave_room(pack, entries, left, right):
    found = acting(pack, [[None, options] for options in entries])
    torch.testing.assert_close(found[:, 8, 3], torch.tensor(left).float())
    torch.testing.assert_close(found[:, 8, 12], torch.tensor(right).float())


@pytest.mark.parametrize("entries", [
    [{"mask": left_of(8)}, {"default": True}],
    [{"area": (8, 4, 0, 0)}, {"default": True}],
    [{"mask": left_of(8), "mask_strength": 0.4}, {"default": True}, {"default": True}],
    [{}, {"default": True}],
    [{"default": True}],
])  # fmt: skip
def test_a_default_negative_acts_as_a_default_positive(pack, model, text, sample, entries):
    """The weights of ComfyUI's sampler: what it makes of a network that gives 1 for one entry and 0 for the others."""
    conds = [text(20 + n, **options)[0] for n, options in enumerate(entries)]
    shares = acting(pack, conds, size=8)
    for (embedding, _), share in zip(conds, shares, strict=True):

        def network(apply_model, args, embedding=embedding):
            alike = [torch.equal(row, embedding[0]) for row in args["c"]["c_crossattn"]]
            return torch.tensor(alike).float()[:, None, None, None].expand_as(args["input"]).clone()

        counting = model.clone()
        counting.set_model_unet_function_wrapper(network)
        weight = sample(counting, conds)[0, 0] * model.model.latent_format.scale_factor
        torch.testing.assert_close(share, weight, rtol=1e-4, atol=1e-4)


def test_a_default_negative_in_the_picture(pack, model, text, sample):
    """A on the left and B as default is A on the left and B, by a mask, on the right."""
    a, b = text(8), text(9)
    left, right = left_of(8), 1 - left_of(8)
    node = pack.payload.patch
    masked = [[a[0][0], {"mask": left}], [b[0][0], {"mask": right}]]
    default = [[a[0][0], {"mask": left}], [b[0][0], {"default": True}]]
    result = sample(node(model, default, 1.0), text(1))
    torch.testing.assert_close(result, sample(node(model, masked, 1.0), text(1)), **CLOSE)
    both = [[a[0][0], {"mask": left}], [b[0][0], {}]]
    assert (result - sample(node(model, both, 1.0), text(1))).abs().max() > 0.1


def test_a_default_negative_takes_over_after_the_others_steps(pack, model, text, sample):
    """What room there is depends on the step."""
    a, b = text(8, start_percent=0.0, end_percent=0.3), text(9)
    default = sample(pack.payload.patch(model, a + [[b[0][0], {"default": True}]], ALPHA), text(1), steps=3)
    apart = a + text(9, start_percent=0.30001, end_percent=1.0)
    torch.testing.assert_close(default, sample(pack.payload.patch(model, apart, ALPHA), text(1), steps=3), **CLOSE)
