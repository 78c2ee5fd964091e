"""NASA in joint attention against whole networks written out by hand; random weights, so wiring and not quality."""

from functools import cache
from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from families import ALL, JOINT, build, conditioning, sample
from joint_truths import NETWORKS, Steer, by_hand

RULES = ["nasa", "difference", "vsf"]
BAR = 1e-5  # of the largest value
WRITTEN = [name for name in JOINT if JOINT[name].layout in NETWORKS]


@cache
def built(name):
    return build(name)


@pytest.fixture
def model(request):
    """The family's model, whose weights and modules must be the same after every test."""
    name = request.getfixturevalue("name")
    model = built(name)
    sample(name, model, conditioning(name, 1), steps=1)  # ComfyUI leaves marks of its own
    before = state(model)
    yield model
    assert all(map(torch.equal, state(model)[0], before[0]))
    assert state(model)[1] == before[1]


def state(model):
    modules = {name: sorted(module.__dict__) for name, module in model.model.named_modules()}
    return [value.clone() for value in model.model.state_dict().values()], modules


def error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def alphas(*values, batch=2):
    return [torch.full((batch, 1), value) for value in values]


@pytest.mark.parametrize("name", WRITTEN)
def test_the_network_by_hand_is_comfyuis(model, name):
    with by_hand(name, model, Steer([], [], "nasa")):
        expected = sample(name, model, conditioning(name, 1))
    assert error(sample(name, model, conditioning(name, 1)), expected) < BAR


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WRITTEN)
def test_formula(pack, model, name, rule, adaptive):
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    plain = sample(name, model, positive)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule, adaptive)):
        expected = sample(name, model, positive)
    steered = sample(name, pack.payload.patch(model, negative, 0.6, rule=rule, adaptive=adaptive), positive)
    assert error(steered, expected) < BAR
    assert error(plain, expected) > 100 * BAR
    assert torch.equal(sample(name, model, positive), plain)


def joint_blocks(model):
    network = model.model.diffusion_model
    names = "joint_blocks", "double_blocks", "single_blocks", "double_layers", "single_layers", "layers"
    return [block for name in names for block in getattr(network, name, ())]


def overridden(model, calls=None):
    """As SageAttention and its like: another function for every attention."""
    model = model.clone()

    def override(attention, *args, **kwargs):
        if calls is not None:
            calls.append(args[0].shape)
        return attention(*args, **kwargs) * 0.9

    options = model.model_options["transformer_options"]
    model.model_options["transformer_options"] = {**options, "optimized_attention_override": override}
    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Flux", "SD 3.5 medium"])
def test_without_masses_from_the_kernel(pack, model, name, rule, monkeypatch):
    """What needs them is asked for by a second attention: the same picture."""
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    patched = pack.payload.patch(model, negative, 0.6, rule=rule, adaptive=True)
    expected = sample(name, patched, positive)
    monkeypatch.setattr(pack.attention, "EXACT", ())
    asked = sample(name, patched, positive)
    assert error(asked, expected) < BAR
    assert not torch.equal(asked, expected)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", ["Flux", "SD 3.5 medium"])
def test_an_attention_override_stays_in_use(pack, model, name, first):
    """Scaled by one half, attention gives as much less of Z+ and of Z-."""
    positive, negative, calls = conditioning(name, 1), conditioning(name, 2, tokens=9), []
    plain = sample(name, overridden(model, calls), positive)
    count = len(calls)
    patched = pack.payload.patch(overridden(model, calls) if first else model, negative, 0.6)
    patched = patched if first else overridden(patched, calls)
    steered = sample(name, patched, positive)
    assert len(calls) == count + count + 2 * 2 * ALL[name].layers
    assert not torch.equal(steered, plain)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", JOINT)
def test_alpha_zero_and_outside_of_its_range_are_bit_identical(pack, model, name, rule):
    positive, uncond, negative = (conditioning(name, n) for n in range(3))
    plain = sample(name, model, positive, uncond, cfg=4)
    for alpha, start in ((0.0, 0.0), (0.6, 0.9)):
        patched = pack.payload.patch(model, negative, alpha, start, 1.0, rule=rule)
        assert torch.equal(sample(name, patched, positive, uncond, cfg=4), plain)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Flux", "SD 3.5 medium"])
def test_several_negatives_of_different_length(pack, model, name, rule):
    positive, one, other = conditioning(name, 1), conditioning(name, 2, tokens=9), conditioning(name, 3, tokens=5)
    contexts = [one[0][0], other[0][0]]
    with by_hand(name, model, Steer(contexts, alphas(0.3, 0.3), rule)):
        expected = sample(name, model, positive)
    together = sample(name, pack.payload.patch(model, one + other, 0.6, rule=rule), positive)
    assert error(together, expected) < BAR
    with by_hand(name, model, Steer(contexts, alphas(0.6, 1.2), rule)):
        expected = sample(name, model, positive)
    patched = pack.payload.patch(model, one, 0.6, rule=rule, name="one")
    patched = pack.payload.patch(patched, other, 1.2, rule=rule, name="other")
    assert error(sample(name, patched, positive), expected) < BAR


class Apart(comfy.samplers.CFGGuider):
    """CFG in two calls, the positive one steered by hand."""

    steering = None

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, as in ComfyUI
        def predicted(conds):
            return comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[conds]], x, timestep, model_options)[0]

        with self.steering():
            positive = predicted("positive")
        negative = predicted("negative")
        return negative + (positive - negative) * self.cfg


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WRITTEN)
def test_cfg_steers_the_positive_alone_in_one_call(pack, model, name, rule, monkeypatch):
    """And the negative's text is computed for the positive's rows alone."""
    positive, uncond, negative = conditioning(name, 1), conditioning(name, 3), conditioning(name, 2, tokens=9)
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        block = type(joint_blocks(model)[0])
        forward = block.forward

        def counted(self, *args, **kwargs):
            texts = [value for value in (*args[:1], kwargs.get("txt")) if torch.is_tensor(value)]
            if any(self is joint for joint in joint_blocks(model)):  # refiners may be of the same class
                sizes.append(texts[0].shape[0])
            return forward(self, *args, **kwargs)

        patch.setattr(block, "forward", counted)
        steered = sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive, uncond, cfg=3.0)
    assert set(sizes) == {4, 2} and sizes.count(4) == sizes.count(2)
    monkeypatch.setattr(
        Apart, "steering", lambda self: by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule))
    )
    monkeypatch.setattr(comfy.samplers, "CFGGuider", Apart)
    assert error(steered, sample(name, model, positive, uncond, cfg=3.0)) < 3 * BAR


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "name", ["Flux", "Flux schnell", "Flux 2", "OmniGen 2", "SD 3.5 medium", "Chroma", "Chroma Radiance", "AuraFlow"]
)
def test_masked_negative(pack, model, name, rule):
    """The left half of the picture."""
    positive, (height, width) = conditioning(name, 1), ALL[name].latent[-2:]
    half = torch.zeros(1, 8 * height, 8 * width)
    half[..., : 8 * (width // 4 * 2)] = 1.0
    options = {"mask": half, "mask_strength": 1.0, "set_area_to_bounds": False}
    negative = conditioning(name, 2, tokens=9, **options)
    patch = ALL[name].unet.get("patch_size", 2)
    map = torch.nn.functional.pad(half[:, ::8, ::8], (0, -width % patch, 0, -height % patch), mode="replicate")
    map = torch.nn.functional.avg_pool2d(map[None], patch).flatten()
    with by_hand(name, model, Steer([negative[0][0]], [0.6 * map.expand(2, -1)], rule)):
        expected = sample(name, model, positive)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive), expected) < BAR
    assert 0 < map.mean() < 1


CHOSEN = {
    "Flux": ("double1, single0", {"double1", "single0"}),
    "SD 3.5 large": ("1", {"1"}),
    "AuraFlow": ("double1, single0", {"double1", "single0"}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CHOSEN)
def test_chosen_blocks(pack, model, name, rule):
    """The negative's text goes through those before them too."""
    blocks, only = CHOSEN[name]
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule, only=only)):
        expected = sample(name, model, positive)
    patched = pack.payload.patch(model, negative, 0.6, blocks=blocks, rule=rule)
    assert error(sample(name, patched, positive), expected) < BAR


@pytest.mark.parametrize("name", JOINT)
def test_the_prompt_as_its_own_negative_changes_nothing(pack, model, name):
    positive = conditioning(name, 1)
    patched = pack.payload.patch(model, positive, 1.0, rule="difference")
    plain = sample(name, model, positive)
    assert error(sample(name, patched, positive), plain) < BAR
    other = pack.payload.patch(model, conditioning(name, 2, tokens=9), 1.0, rule="difference")
    assert error(sample(name, other, positive), plain) > 100 * BAR


@pytest.mark.parametrize("name", ["Flux", "SD 3"])
def test_batched_negative_gives_each_picture_its_own(pack, model, name):
    positive, one, other = conditioning(name, 1), conditioning(name, 2), conditioning(name, 3)
    both = [[torch.cat([one[0][0], other[0][0]]), {"pooled_output": torch.zeros(2, 20)}]]
    steered = sample(name, pack.payload.patch(model, both, 0.6), positive)
    for n, negative in enumerate((one, other)):
        alone = sample(name, pack.payload.patch(model, negative, 0.6), positive)
        assert error(steered[n], alone[n]) < BAR


@pytest.mark.parametrize("where", ["inside a block", "between steps"])
@pytest.mark.parametrize("raised", [RuntimeError, comfy.model_management.InterruptProcessingException])
@pytest.mark.parametrize("name", ["Flux", "SD 3"])
def test_nothing_stays_behind_after_an_error_or_cancel(pack, model, name, raised, where):
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    plain, patched = sample(name, model, positive), pack.payload.patch(model, negative, 0.6)
    whole, calls, block = sample(name, patched, positive), [], joint_blocks(model)[1]

    def hook(*_):
        calls.append("nasa" in block.__dict__)
        if where == "inside a block" or len(calls) > 1:
            raise raised()

    inside = block if where == "inside a block" else model.model.diffusion_model
    handle = inside.register_forward_pre_hook(hook)
    with pytest.raises(raised):
        sample(name, patched, positive)
    handle.remove()
    assert calls[-1]
    assert torch.equal(sample(name, model, positive), plain)
    assert torch.equal(sample(name, patched, positive), whole)


@pytest.mark.parametrize("skipped", [None, 0, 1])
@pytest.mark.parametrize("name", ["Flux", "SD 3.5 large"])
def test_beside_replaced_blocks(pack, model, name, skipped):
    """Passing on changes no bit; a block that another pack skips leaves the negative's text as it is."""
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    expected = sample(name, pack.payload.patch(model, negative, 0.6), positive)
    replaced = model.clone()
    for number in range(2):

        def replacement(args, more, number=number):
            return args if number == skipped else more["original_block"](args)

        replaced.set_model_patch_replace(replacement, "dit", "double_block", number)
    steered = sample(name, pack.payload.patch(replaced, negative, 0.6), positive)
    assert torch.equal(steered, expected) == (skipped is None)
    assert torch.isfinite(steered).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Flux", "Flux 2", "OmniGen 2"])
def test_reference_pictures_are_not_steered(pack, model, name, rule):
    generator = torch.Generator().manual_seed(4)
    latents = [torch.randn(1, ALL[name].latent[0], 4, width, generator=generator) for width in (6, 4)]
    latents = {"reference_latents": latents, "reference_latents_method": "index"}
    positive, negative = conditioning(name, 1, **latents), conditioning(name, 2, tokens=9)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule)):
        expected = sample(name, model, positive)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive), expected) < BAR
    assert not torch.equal(sample(name, model, positive), sample(name, model, conditioning(name, 1)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Flux", "Chroma"])
def test_a_mask_of_the_prompt_does_not_hide_the_negative(pack, model, name, rule):
    """As Redux sets it: a weight for some tokens of the prompt, here for two that nothing sees."""
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    ((embedding, options),) = positive
    mask = torch.zeros(1, 24, 24)
    mask[..., 10:12] = -torch.inf
    masked = [[embedding, {**options, "attention_mask": mask, "attention_mask_img_shape": (3, 4)}]]
    seen = [[embedding[:, :10], options]]
    patched = pack.payload.patch(model, negative, 0.6, rule=rule)
    steered = sample(name, patched, masked)
    assert error(steered, sample(name, patched, seen)) < BAR
    assert error(steered, sample(name, model, masked)) > 100 * BAR


def hunyuan_video_text(seed, byt5, vision):
    """What else is part of a text: CONDITIONING's options, and the arguments of the network that come of them."""
    generator = torch.Generator().manual_seed(seed)
    byt5, vision = torch.randn(1, byt5, 16, generator=generator), torch.randn(1, vision, 12, generator=generator)
    options = {"conditioning_byt5small": byt5, "clip_vision_output": SimpleNamespace(last_hidden_state=vision)}
    return options, {"txt_byt5": byt5, "clip_fea": vision}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["HunyuanVideo 1.5", "HunyuanImage 2.1"])
def test_byt5_and_vision_tokens_are_part_of_each_text(pack, model, name, rule):
    options, _ = hunyuan_video_text(1, 5, 3)
    positive = conditioning(name, 1, **options)
    options, more = hunyuan_video_text(2, 3, 4)
    if "1.5" not in name:
        del more["clip_fea"]
    negative = conditioning(name, 2, tokens=9, **options)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule, more=[more])):
        expected = sample(name, model, positive)
    patched = pack.payload.patch(model, negative, 0.6, rule=rule)
    assert error(sample(name, patched, positive), expected) < BAR
    patched = pack.payload.patch(model, conditioning(name, 2, tokens=9), 0.6, rule=rule)
    assert error(sample(name, patched, positive), expected) > 100 * BAR


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["HunyuanVideo", "HunyuanVideo 1.5"])
def test_padding_of_texts_counts_in_the_mean_of_the_refiner_alone(pack, model, name, rule):
    """One picture, as ComfyUI takes no mask of several."""
    masks = [torch.tensor([[1] * (tokens - 2) + [0] * 2]) for tokens in (12, 9)]
    positive = conditioning(name, 1, attention_mask=masks[0])
    negative = conditioning(name, 2, tokens=9, attention_mask=masks[1])
    steer = Steer([negative[0][0]], alphas(0.6, batch=1), rule, more=[{"attention_mask": masks[1]}])
    with by_hand(name, model, steer):
        expected = sample(name, model, positive, batch=1)
    patched = pack.payload.patch(model, negative, 0.6, rule=rule)
    assert error(sample(name, patched, positive, batch=1), expected) < BAR
    assert error(sample(name, model, positive, batch=1), expected) > 100 * BAR
    ((_, options),) = negative
    options["attention_mask"] = (masks[1].float() - 1) * torch.finfo(torch.float32).max  # as the model reads numbers
    patched = pack.payload.patch(model, negative, 0.6, rule=rule)
    assert error(sample(name, patched, positive, batch=1), expected) < BAR


@pytest.mark.parametrize("rule", RULES)
def test_a_reference_before_a_video_is_not_steered(pack, rule):
    """One picture, as ComfyUI takes none for several."""
    name = "HunyuanVideo"
    model, latent = built(name), torch.randn(1, 16, 1, 6, 4, generator=torch.Generator().manual_seed(4))
    positive, negative = conditioning(name, 1, ref_latent=latent), conditioning(name, 2, tokens=9)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6, batch=1), rule)):
        expected = sample(name, model, positive, batch=1)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive, batch=1), expected) < BAR
    assert not torch.equal(sample(name, model, positive, batch=1), sample(name, model, conditioning(name, 1), batch=1))


@pytest.mark.parametrize("rule", RULES)
def test_a_first_frame_that_stays_is_not_steered(pack, rule):
    """Image to video by token_replace: its tokens have a modulation of their own, which is not the text's."""
    name, frames, frame = "HunyuanVideo", [], 6
    model, positive = built(name), conditioning(name, 1, guiding_frame_index=0)
    options = {"mask": torch.ones(1, 48, 32), "mask_strength": 1.0, "set_area_to_bounds": False}

    def seen(model):
        block = model.model.diffusion_model.double_blocks[0]
        handle = block.register_forward_hook(lambda *call: frames.append(call[-1][0].clone()))
        try:
            return sample(name, model, positive, batch=1), frames.pop(0)
        finally:
            handle.remove()
            frames.clear()

    plain, plain_frames = seen(model)
    for negative in conditioning(name, 2, tokens=9), conditioning(name, 2, tokens=9, **options):
        steered, steered_frames = seen(pack.payload.patch(model, negative, 0.6, rule=rule))
        assert error(steered, plain) > 100 * BAR
        assert error(steered_frames[:, :frame], plain_frames[:, :frame]) < BAR
        assert error(steered_frames[:, frame:], plain_frames[:, frame:]) > 100 * BAR
    steered, _ = seen(pack.payload.patch(model, positive, 1.0, rule="difference"))
    assert error(steered, plain) < BAR


def test_text_that_an_option_of_radiance_counts(pack):
    """Chroma Radiance Options changes where the prompt's tokens are, and the negative's."""
    name = "Chroma Radiance"
    model, positive = built(name), conditioning(name, 1)
    plain = sample(name, model, positive)
    if not hasattr(model.model.diffusion_model.params, "use_sequential_txt_ids"):
        pytest.skip("this ComfyUI has no such option")
    options = {
        **model.model_options["transformer_options"],
        "chroma_radiance_options": {"use_sequential_txt_ids": False},
    }
    model = model.clone()
    model.model_options["transformer_options"] = options
    uncounted = sample(name, model, positive)
    assert error(uncounted, plain) > 100 * BAR
    patched = pack.payload.patch(model, positive, 1.0, rule="difference")
    assert error(sample(name, patched, positive), uncounted) < BAR


@pytest.mark.parametrize(
    "name, rule, adaptive", [("Flux schnell", "difference", True), ("SD 3.5 medium", "nasa", False)]
)
def test_on_off_and_alpha_on_one_compiled_network(pack, model, name, rule, adaptive):
    """Without guards on transformer_options, as newer cores compile; no graph more for another alpha or prompt."""
    positive, graphs = conditioning(name, 1), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def no_guard_on_options(guards):
        return ["transformer_options" not in guard.name for guard in guards]

    def compiled(model):
        model = model.clone()
        set_torch_compile_wrapper(model, backend=backend, options={"guard_filter_fn": no_guard_on_options})
        return model

    def check(alpha, seed=2):
        patched = pack.payload.patch(model, conditioning(name, seed, tokens=9), alpha, rule=rule, adaptive=adaptive)
        assert error(sample(name, compiled(patched), positive), sample(name, patched, positive)) < BAR
        return len(graphs)

    torch._dynamo.reset()
    try:
        off = check(0.0)
        on = check(0.5)
        assert on > off > 0
        assert check(0.9) == check(0.9, seed=3) == on
        again = check(0.0)
        assert check(0.7) == check(0.0) == again == on
    finally:
        torch._dynamo.reset()
