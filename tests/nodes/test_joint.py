"""NASA in joint attention against whole networks written out by hand; random weights, so wiring and not quality."""

import inspect
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
    names = (
        "joint_blocks", "double_blocks", "single_blocks", "layers", "blocks", "double_stream_layers",
        "single_stream_layers",
    )  # fmt: skip
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
    "name",
    [
        "Flux",
        "Flux schnell",
        "Flux 2",
        "Lumina 2",
        "Z-Image",
        "Z-Image of pixels",
        "Krea 2",
        "Ideogram 4",
        "Boogu",
        "OmniGen 2",
        "SD 3.5 medium",
    ],
)
def test_masked_negative(pack, model, name, rule):
    """The left half of the picture."""
    positive, (height, width) = conditioning(name, 1), ALL[name].latent[-2:]
    half = torch.zeros(1, 8 * height, 8 * width)
    half[..., : 8 * (width // 4 * 2)] = 1.0
    options = {"mask": half, "mask_strength": 1.0, "set_area_to_bounds": False}
    negative = conditioning(name, 2, tokens=9, **options)
    patch = {"Flux 2": 1, "Ideogram 4": 1, "Z-Image of pixels": 4}.get(name, 2)
    map = torch.nn.functional.pad(half[:, ::8, ::8], (0, -width % patch, 0, -height % patch), mode="replicate")
    map = torch.nn.functional.avg_pool2d(map[None], patch).flatten()
    with by_hand(name, model, Steer([negative[0][0]], [0.6 * map.expand(2, -1)], rule)):
        expected = sample(name, model, positive)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive), expected) < BAR
    assert 0 < map.mean() < 1


CHOSEN = {
    "Boogu": ("double1, single0", {"double1", "single0"}),
    "Flux": ("double1, single0", {"double1", "single0"}),
    "SD 3.5 large": ("1", {"1"}),
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
@pytest.mark.parametrize(
    "name, method",
    [
        ("Flux", "index"),
        ("Flux 2", "index"),
        ("OmniGen 2", "index"),
        ("Krea 2", "index"),
        ("Krea 2", "index_timestep_zero"),
        ("Boogu", "index"),
    ],
)
def test_reference_pictures_are_not_steered(pack, model, name, method, rule):
    generator, shape = torch.Generator().manual_seed(4), ALL[name].latent[:-1]
    latents = [torch.randn(1, *shape[:-1], 4, width, generator=generator) for width in (6, 4)]
    latents = {"reference_latents": latents, "reference_latents_method": method}
    positive, negative = conditioning(name, 1, **latents), conditioning(name, 2, tokens=9)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule)):
        expected = sample(name, model, positive)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive), expected) < BAR
    assert not torch.equal(sample(name, model, positive), sample(name, model, conditioning(name, 1)))


@pytest.mark.parametrize("name", ["Ideogram 4"])
def test_calls_without_any_text(pack, model, name, monkeypatch):
    """The other half of CFG, which ComfyUI calls with the picture alone; and a prompt that is none."""
    positive, negative, none = conditioning(name, 1), conditioning(name, 2, tokens=9), [[None, {}]]
    patched = pack.payload.patch(model, negative, 0.6)
    steered = sample(name, patched, positive, none, cfg=3.0)
    assert torch.equal(sample(name, patched, none), sample(name, model, none))
    steer = Steer([negative[0][0]], alphas(0.6), "difference")
    monkeypatch.setattr(Apart, "steering", lambda self: by_hand(name, model, steer))
    monkeypatch.setattr(comfy.samplers, "CFGGuider", Apart)
    assert error(steered, sample(name, model, positive, none, cfg=3.0)) < 3 * BAR


@pytest.mark.parametrize("rule, adaptive", [("nasa", True), ("difference", False), ("vsf", False)])
@pytest.mark.parametrize("name", ["Ideogram 4"])
def test_padding_of_prompt_and_negative_is_not_seen(pack, model, name, rule, adaptive):
    """The prompt's attention mask holds here too; what the encoder left in a negative's padding does not count."""
    positive = conditioning(name, 1, attention_mask=torch.tensor([[1] * 9 + [0] * 3]))
    negative = conditioning(name, 2, tokens=9)
    with by_hand(name, model, Steer([negative[0][0][:, :7]], alphas(0.6), rule, adaptive)):
        expected = sample(name, model, positive)
    negative[0][1]["attention_mask"] = torch.tensor([[1] * 7 + [0] * 2])
    steered = sample(name, pack.payload.patch(model, negative, 0.6, rule=rule, adaptive=adaptive), positive)
    assert error(steered, expected) < BAR


def as_omni(latents, contexts, seen):
    """What Z-Image Omni's text encoder adds: two pictures of so many, so many texts around them, and what it sees."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    seen = [
        SimpleNamespace(image_sizes=[(3, 16 * rows, 32)], last_hidden_state=random(1, 2 * rows, 12))
        for rows in range(3, 3 + seen)
    ]
    return {
        "reference_latents": [random(1, 16, 4, width) for width in (6, 4)[:latents]],
        "reference_latents_text_embeds": [random(1, tokens, 24) for tokens in (7, 3, 4)[:contexts]],
        "clip_vision_outputs": seen,
    }


@pytest.mark.parametrize(
    "name, counts, rule",
    [
        ("Z-Image", (2, 1, 0), "difference"),
        ("Z-Image", (1, 2, 0), "nasa"),
        ("Z-Image Omni", (2, 3, 2), "difference"),
        ("Z-Image Omni", (1, 0, 0), "vsf"),
        ("Z-Image Omni", (2, 2, 3), "nasa"),
    ],
)
def test_reference_pictures_of_z_image_omni_are_not_steered(pack, model, name, counts, rule, monkeypatch):
    """Nor what it sees of them. They stand at time 0, for which the modulations of all rows come twice."""
    if "ref_latents" not in inspect.signature(model.model.diffusion_model._forward).parameters:
        pytest.skip("this ComfyUI has no reference pictures in Z-Image")
    batch = 1 if counts[1] > counts[0] else 2  # more texts than pictures are one row at a time, in ComfyUI
    references = as_omni(*counts)
    positive, uncond = conditioning(name, 1, **references), conditioning(name, 3, **references)
    negative = conditioning(name, 2, tokens=9)
    patched = pack.payload.patch(model, negative, 0.6, rule=rule)
    steer = Steer([negative[0][0]], alphas(0.6, batch=batch), rule)
    with by_hand(name, model, steer):
        expected = sample(name, model, positive, batch=batch)
    assert error(sample(name, patched, positive, batch=batch), expected) < BAR
    without = sample(name, model, conditioning(name, 1), batch=batch)
    assert not torch.equal(sample(name, model, positive, batch=batch), without)
    if batch == 2:
        steered = sample(name, patched, positive, uncond, cfg=3.0)
        monkeypatch.setattr(Apart, "steering", lambda self: by_hand(name, model, steer))
        monkeypatch.setattr(comfy.samplers, "CFGGuider", Apart)
        assert error(steered, sample(name, model, positive, uncond, cfg=3.0)) < 3 * BAR


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
