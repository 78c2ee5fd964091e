"""blocks, norm_limit and several negatives with names, on a narrow SD 1.5."""

import pytest
import torch

CLOSE = {"rtol": 1e-4, "atol": 1e-3}  # x0 reaches 40


@pytest.fixture
def seen(model):
    """seen(run): the blocks whose cross-attention was steered during run()."""

    def seen(run):
        unet, found = model.model.diffusion_model, set()
        places = {f"in{n}": part for n, part in enumerate(unet.input_blocks)} | {"mid": unet.middle_block}
        places |= {f"out{n}": part for n, part in enumerate(unet.output_blocks)}

        def watch(place):
            return lambda to_out, _: found.add(place) if hasattr(to_out, "nasa") else None

        handles = [
            module.to_out.register_forward_pre_hook(watch(place))
            for place, part in places.items()
            for name, module in part.named_modules()
            if name.endswith("attn2")
        ]
        run()
        for handle in handles:
            handle.remove()
        return found

    return seen


@pytest.mark.parametrize(
    "blocks, names",
    [
        ("all", {"in1", "in3", "mid", "out0", "out1", "out2", "out3"}),
        (" ", {"in1", "in3", "mid", "out0", "out1", "out2", "out3"}),
        ("mid", {"mid"}),
        ("in1-3, MID,out3", {"in1", "in3", "mid", "out3"}),
        ("in2-3 out0-3", {"in3", "out0", "out1", "out2", "out3"}),
    ],
)
def test_blocks(pack, model, text, sample, seen, blocks, names):
    patched = pack.payload.patch(model, text(2), 0.5, blocks=blocks)
    assert seen(lambda: sample(patched, text(1))) == names


@pytest.mark.parametrize("wrong", ["in0", "in2-4", "in5-9", "1-2", "mid1", "in1-", "out3-1", "up"])
def test_a_wrong_block_is_named(pack, model, text, wrong):
    with pytest.raises(ValueError, match=f"^blocks names {wrong}, which is not .*: choose from in1.*, or write all.$"):
        pack.payload.patch(model, text(2), 0.5, blocks=f"mid, {wrong}")


def test_block_lists_are_written_as_they_are_read(pack):
    names = ["in1", "in2", "in4", "mid", "out3", "out4", "out5", "vace0", "7"]
    assert pack.blocks.compact(names) == "in1-2, in4, mid, out3-5, vace0, 7"
    assert pack.blocks.chosen_blocks(pack.blocks.compact(names), names) == names


def limited(z_positive, z_negative, alpha, limit):
    """Z_NASA as in NAG: the L1 norm of every token held to limit times that of Z+."""
    z = z_positive - alpha * z_negative
    ratio = z.abs().sum(-1) / z_positive.abs().sum(-1)
    return torch.where((ratio > limit)[..., None], z * (limit / ratio)[..., None], z)


def steer_away(pack, z_positive, z_negative, alpha, limit):
    seen = pack.rules.Seen(z_negative, z_negative)
    return pack.rules.steer_away(z_positive, [(seen, alpha, "nasa", False)], limit)


@pytest.mark.parametrize("alpha, limit", [(0.5, 1.0), (1.5, 1.2), (1.5, 100.0)])
def test_norm_limit(pack, alpha, limit):
    z_positive, z_negative = torch.randn(2, 3, 50, 16, generator=torch.Generator().manual_seed(1))
    steered = steer_away(pack, z_positive, z_negative, torch.full((3, 1, 1), alpha), limit)
    torch.testing.assert_close(steered, limited(z_positive, z_negative, alpha, limit))
    norms = steered.abs().sum(-1) / z_positive.abs().sum(-1)
    assert norms.max() < limit * 1.0001
    unlimited = z_positive - alpha * z_negative
    assert torch.allclose(steered, unlimited) == (limit == 100.0)


def test_norm_limit_leaves_what_is_not_steered(pack, model, text, sample):
    """CFG's own negative, which has alpha 0, keeps its bits."""
    positive, uncond = text(1), text(3)
    z = torch.randn(2, 5, 8)
    assert torch.equal(steer_away(pack, z, torch.randn(2, 5, 8), torch.zeros(2, 1, 1), 1.0), z)
    free, held = (
        sample(pack.payload.patch(model, text(2), 1.5, norm_limit=limit), positive, uncond, 3.0) for limit in (0.0, 1.2)
    )
    assert (free - held).abs().max() > 0.05  # fmt: skip


def test_named_negatives_stack(pack, model, text, sample, truth):
    positive, one, two = text(1), text(2), text(5, tokens=40)
    patch = pack.payload.patch
    both = patch(patch(model, one, 0.3, name="one"), two, 0.4, name="two")
    with truth(model, one[0][0], 0.3), truth(model, two[0][0], 0.4):
        expected = sample(model, positive, steps=2, batch=2)
    torch.testing.assert_close(sample(both, positive, steps=2, batch=2), expected, **CLOSE)

    again = patch(both, one, 0.0, name="one")  # takes one away
    assert torch.equal(sample(again, positive), sample(patch(model, two, 0.4), positive))
    replaced = patch(both, text(6), 0.3, name="one")
    assert torch.equal(sample(replaced, positive), sample(patch(again, text(6), 0.3, name="one"), positive))


def test_named_negatives_in_blocks_of_their_own(pack, model, text, sample, seen):
    patch = pack.payload.patch
    both = patch(patch(model, text(2), 0.3, blocks="mid", name="one"), text(5), 0.4, blocks="in1", name="two")
    assert seen(lambda: sample(both, text(1))) == {"mid", "in1"}


@pytest.mark.parametrize(("family", "alpha"), [("SD 1.5", 0.1), ("SD 2.1", 0.2), ("SDXL", 0.5)])
def test_a_new_node_takes_the_strength_that_suits_the_model_and_says_it(pack, models, text, family, alpha):
    node = pack.nasa_patch.NASACrossAttentionPatch
    (wanted,) = (input for input in node.define_schema().inputs if input.id == "alpha")
    assert wanted.default == wanted.min == -1 and node.validate_inputs(alpha=-1.0) is True
    negative = text(2, width=pack.layouts.text_width(models[family].model.diffusion_model))
    made = node.execute(models[family], negative, wanted.default, 0.0, 1.0)
    assert pack.payload.negatives_of(made.args[0])[""].alpha == alpha
    assert made.ui.as_dict() == {"text": (f"Negative strength {alpha:g}, which suits the model.",)}
    assert node.execute(models[family], negative, alpha, 0.0, 1.0).ui is None  # a number of one's own is not repeated


def test_the_node_passes_its_rule_on(pack, model, text, sample):
    """`rule` and what follows may be missing: graphs saved before there were any run as they did."""
    node = pack.nasa_patch.NASACrossAttentionPatch
    inputs = [input.id for input in node.define_schema().inputs]
    assert inputs[-4:] == ["rule", "adaptive", "padding", "clip"] and inputs[:3] == ["model", "negative", "alpha"]
    before = node.execute(model, text(2), 0.5, 0.0, 1.0).args[0]
    by_default = node.execute(model, text(2), 0.5, 0.0, 1.0, rule="auto", adaptive=False).args[0]
    adaptive = node.execute(model, text(2), 0.5, 0.0, 1.0, rule="nasa", adaptive=True).args[0]
    papers = node.execute(model, text(2), 0.5, 0.0, 1.0, rule="nasa").args[0]
    difference = node.execute(model, text(2), 0.5, 0.0, 1.0, rule="difference").args[0]
    picture = sample(before, text(1))
    assert torch.equal(sample(by_default, text(1)), picture)
    assert torch.equal(sample(adaptive, text(1)), picture)
    assert torch.equal(sample(papers, text(1)), sample(pack.payload.patch(model, text(2), 0.5), text(1)))
    assert not torch.allclose(sample(papers, text(1)), picture)
    assert not torch.allclose(sample(difference, text(1)), picture)
    assert next(input for input in node.define_schema().inputs if input.id == "alpha").max == pack.rules.LARGEST_ALPHA
    with pytest.raises(ValueError, match="There is no rule called nag: choose auto, nasa, difference, vsf"):
        pack.payload.patch(model, text(2), 0.5, rule="nag")
    for options in ({"rule": "vsf"}, {"rule": "difference", "adaptive": True}):
        steered = sample(node.execute(model, text(2), 0.5, 0.0, 1.0, **options).args[0], text(1))
        assert not torch.allclose(steered, picture), options
