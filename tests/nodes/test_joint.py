"""NASA in joint attention against whole networks written out by hand; random weights, so wiring and not quality."""

import inspect
from contextlib import nullcontext
from functools import cache
from math import prod
from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from families import ALL, JOINT, build, conditioning, sample, sample_apart
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
        "joint_blocks", "double_blocks", "single_blocks", "layers", "blocks", "transformer_blocks",
        "double_stream_layers", "single_stream_layers", "double_stream_blocks", "patch_blocks", "double_layers",
        "single_layers",
    )  # fmt: skip
    network = getattr(network, "language_model", network)
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
@pytest.mark.parametrize("name", ["Flux", "ERNIE-Image", "SD 3.5 medium"])
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
@pytest.mark.parametrize("name", ["Flux", "Lens", "SD 3.5 medium", "HiDream-O1"])
def test_an_attention_override_stays_in_use(pack, model, name, first):
    """Scaled by one half, attention gives as much less of Z+ and of Z-."""
    positive, negative, calls = conditioning(name, 1), conditioning(name, 2, tokens=9), []
    plain = sample(name, overridden(model, calls), positive)
    count = len(calls)
    patched = pack.payload.patch(overridden(model, calls) if first else model, negative, 0.6)
    patched = patched if first else overridden(patched, calls)
    steered = sample(name, patched, positive)
    calls_of_a_block = 1 if name == "HiDream-O1" else 2  # by the picture, and by a text that sees it
    assert len(calls) == count + count + 2 * calls_of_a_block * ALL[name].layers
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
@pytest.mark.parametrize("name", ["Flux", "JoyImage", "SD 3.5 medium"])
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", WRITTEN)
def test_cfg_steers_the_positive_alone_in_one_call(pack, model, name, rule):
    """And the negative's text is computed for the positive's rows alone."""
    positive, uncond, negative = conditioning(name, 1), conditioning(name, 3), conditioning(name, 2, tokens=9)
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        block = type(joint_blocks(model)[0])
        forward = block.forward

        def counted(self, *args, **kwargs):
            texts = [*args[:1], *(kwargs[key] for key in ("txt", "encoder_hidden_states", "x") if key in kwargs)]
            if any(self is joint for joint in joint_blocks(model)):  # refiners may be of the same class
                sizes.append(texts[0].shape[0])
            return forward(self, *args, **kwargs)

        patch.setattr(block, "forward", counted)
        steered = sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive, uncond, cfg=3.0)
    if name == "HiDream-O1":  # whose text is the same in every row and step
        assert sizes.count(4) == 2 * sizes.count(1) == len(sizes) - sizes.count(1)
    else:
        assert set(sizes) == {4, 2} and sizes.count(4) == sizes.count(2)
    steer = Steer([negative[0][0]], alphas(0.6), rule)
    expected = sample_apart(name, model, positive, uncond, 3.0, lambda: by_hand(name, model, steer))
    assert error(steered, expected) < 3 * BAR


@pytest.mark.parametrize("name", [name for name in JOINT if name not in WRITTEN])
def test_cfg_in_one_call_is_as_in_two_with_one_row_steered(pack, model, name):
    """Of two rows the prompt's alone; and by the prompt as its own negative, as without."""
    positive, uncond, negative = conditioning(name, 1), conditioning(name, 3), conditioning(name, 2, tokens=9)
    patched = pack.payload.patch(model, negative, 0.6, rule="difference")
    together = sample(name, patched, positive, uncond, cfg=3.0, batch=1)
    apart = sample_apart(name, patched, positive, uncond, 3.0, nullcontext, batch=1)
    assert error(together, apart) < 3 * BAR
    plain = sample(name, model, positive, uncond, cfg=3.0, batch=1)
    assert error(together, plain) > 100 * BAR
    own = pack.payload.patch(model, positive, 1.0, rule="difference")
    assert error(sample(name, own, positive, uncond, cfg=3.0, batch=1), plain) < 3 * BAR


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "name",
    [
        *{JOINT[name].layout: name for name in reversed(WRITTEN)}.values(),
        "Qwen-Image Layered",
        "Z-Image of pixels",
        "Chroma Radiance",
        "Boogu",
    ],
)
def test_masked_negative(pack, model, name, rule):
    """The left half of the picture."""
    positive, (height, width) = conditioning(name, 1), ALL[name].latent[-2:]
    half = torch.zeros(1, 8 * height, 8 * width)
    half[..., : 8 * (width // 4 * 2)] = 1.0
    options = {"mask": half, "mask_strength": 1.0, "set_area_to_bounds": False}
    negative = conditioning(name, 2, tokens=9, **options)
    patch = ALL[name].unet.get("patch_size", 1 if ALL[name].latent[0] == 128 else 2)
    patch = patch if isinstance(patch, int) else patch[-1]
    map = torch.nn.functional.pad(half[:, ::8, ::8], (0, -width % patch, 0, -height % patch), mode="replicate")
    map = torch.nn.functional.avg_pool2d(map[None], patch).flatten()
    map = map.repeat(prod(ALL[name].latent[1:-2]))
    with by_hand(name, model, Steer([negative[0][0]], [0.6 * map.expand(2, -1)], rule)):
        expected = sample(name, model, positive)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive), expected) < BAR
    assert 0 < map.mean() < 1


CHOSEN = {
    "Boogu": ("double1, single0", {"double1", "single0"}),
    "Flux": ("double1, single0", {"double1", "single0"}),
    "SD 3.5 large": ("1", {"1"}),
    "Lens": ("1", {"1"}),
    "ERNIE-Image": ("0", {"0"}),
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


@pytest.mark.parametrize(
    "name, tokens", [("CogVideoX 1.5", 9), ("HiDream-I1", 9 + 7 + 7), ("PixelDiT", 9), ("PiD", 9), ("MiniMax H3", 9)]
)
def test_the_first_keys_and_values_of_a_negative_are_those_its_model_gives_it_as_a_prompt(pack, model, name, tokens):
    """Of another length than the prompt, and wherever the model puts its text."""
    negative, calls = conditioning(name, 2, tokens=9), []
    shared = {key: value for key, value in negative[0][1].items() if key == "pooled_output"}
    positive = conditioning(name, 1, **shared)

    def recorded(model):
        def override(attention, *args, **kwargs):
            calls.append([x.flatten(2) if kwargs.get("skip_reshape") is None else x.transpose(1, 2).flatten(2)
                          for x in args[1:3]])  # fmt: skip
            return attention(*args, **kwargs)

        calls.clear()
        model = model.clone()
        options = model.model_options["transformer_options"]
        model.model_options["transformer_options"] = {**options, "optimized_attention_override": override}
        return model

    sample(name, recorded(model), negative, steps=1)
    own = calls[0]
    sample(name, recorded(pack.payload.patch(model, negative, 0.6)), positive, steps=1)
    alike = [[x[:, :tokens] for x in pair] for pair in calls if pair[0].shape == own[0].shape]
    own = [[x[:, :tokens] for x in own], [x[:, -tokens:] for x in own]]
    assert 0 < len(alike) < len(calls)
    assert min(max(map(error, pair, text)) for pair in alike for text in own) < BAR


@pytest.mark.parametrize("name", ["MiniMax H3"])
def test_conditions_before_sound_and_video_are_not_steered(pack, model, name):
    """Six tokens of a reference after twelve of text, then ten of sound and twelve of video. In the first block."""
    latent = torch.randn(1, 24, 1, 4, 6, generator=torch.Generator().manual_seed(4))
    reference = {"kind": "image", "latent": latent, "latent_h": 4, "latent_w": 6}
    positive, seen = conditioning(name, 1, minimax_refs=[reference]), []
    out = model.model.diffusion_model.blocks[0].attn.out_proj
    handle = out.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    for entry in ([], conditioning(name, 2, tokens=9)):
        sample(name, pack.payload.patch(model, entry, 0.6) if entry else model, positive, steps=1)
    handle.remove()
    plain, steered = (z for z in seen if len(z) == 12 + 6 + 10 + 12)
    assert error(steered[:18], plain[:18]) < BAR
    for part in (slice(18, 28), slice(28, 40)):
        assert error(steered[part], plain[part]) > 0.01


@pytest.mark.parametrize("name", ["MiniMax H3"])
def test_a_picture_among_the_words_of_a_negative_is_left_out(pack, model, name):
    positive, ((embedding, options),) = conditioning(name, 1), conditioning(name, 2, tokens=9)
    kinds = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1, 1]])
    changed = embedding.clone()
    states = model.model.diffusion_model.preprocess_text_embeds(embedding)  # a refiner, in which words see the picture
    changed = states[:, kinds[0] == 1]
    words = sample(name, pack.payload.patch(model, [[changed, options]], 0.6), positive)
    whole = [[states, {**options, "minimax_token_tags": kinds}]]
    assert error(sample(name, pack.payload.patch(model, whole, 0.6), positive), words) < BAR


@pytest.mark.parametrize("name", ["PixelDiT"])
def test_a_negative_longer_than_its_model_reads_is_cut(pack, model, name):
    positive, ((embedding, options),) = conditioning(name, 1), conditioning(name, 2, tokens=20)
    whole, cut = ([[embedding[:, :tokens], options]] for tokens in (20, 16))
    whole, cut = (sample(name, pack.payload.patch(model, negative, 0.6), positive) for negative in (whole, cut))
    assert torch.equal(whole, cut)


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
@pytest.mark.parametrize("name", ["Flux", "ERNIE-Image", "SD 3"])
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
@pytest.mark.parametrize("name", ["Flux", "SD 3.5 large", "HiDream-O1"])
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


REFERENCES = {
    "Flux": "index", "Flux 2": "index", "OmniGen 2": "", "Qwen-Image": "index",
    "Qwen-Image Edit": "index_timestep_zero", "Qwen-Image Layered": "negative_index", "Mage-Flow": "", "JoyImage": "",
    "Krea 2": "index_timestep_zero", "Boogu": "index",
}  # fmt: skip


def with_references(name, seed, method=None):
    """A prompt with two pictures."""
    generator = torch.Generator().manual_seed(4)
    channels, frames = ALL[name].latent[0], [1] * (len(ALL[name].latent) - 3)
    latents = [torch.randn(1, channels, *frames, 4, width, generator=generator) for width in (6, 4)]
    return conditioning(name, seed, reference_latents=latents, reference_latents_method=method or REFERENCES[name])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_pictures_are_not_steered(pack, model, name, rule):
    positive, negative = with_references(name, 1), conditioning(name, 2, tokens=9)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule)):
        expected = sample(name, model, positive)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive), expected) < BAR
    assert not torch.equal(sample(name, model, positive), sample(name, model, conditioning(name, 1)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Flux 2"])
def test_reference_pictures_at_timestep_zero_in_flux_2(pack, model, name, rule):
    """The negative, longer than prompt and picture, stands at the picture's time; ComfyUI takes one picture here."""
    if "timestep_zero_index" not in inspect.signature(model.model.diffusion_model.forward_orig).parameters:
        pytest.skip("this ComfyUI has no such references in Flux 2")
    positive, negative = with_references(name, 1, "index_timestep_zero"), conditioning(name, 2, tokens=560)
    plain = sample(name, model, positive, batch=1)
    with by_hand(name, model, Steer([], [], rule)):
        assert error(plain, sample(name, model, positive, batch=1)) < BAR
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6, batch=1), rule)):
        expected = sample(name, model, positive, batch=1)
    steered = sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive, batch=1)
    assert error(steered, expected) < BAR
    assert error(plain, expected) > 100 * BAR
    assert error(sample(name, model, with_references(name, 1), batch=1), plain) > BAR


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image", "Qwen-Image Edit"])
def test_cfg_steers_the_positive_alone_beside_reference_pictures(pack, model, name):
    """Those of Qwen-Image Edit have a timestep of their own, in a second half of the batch of timesteps."""
    positive, uncond, negative = with_references(name, 1), with_references(name, 3), conditioning(name, 2, tokens=9)
    steered = sample(name, pack.payload.patch(model, negative, 0.6, rule="difference"), positive, uncond, cfg=3.0)
    steer = Steer([negative[0][0]], alphas(0.6), "difference")
    expected = sample_apart(name, model, positive, uncond, 3.0, lambda: by_hand(name, model, steer))
    assert error(steered, expected) < 3 * BAR


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["Qwen-Image", "Mage-Flow", "Lens"])
def test_tokens_that_a_mask_leaves_out_do_not_count(pack, model, name, rule, adaptive):
    """Of the prompt and of the negative: as texts without them."""

    def padded(seed, tokens):
        ((text, _),) = conditioning(name, seed, tokens)
        mask = torch.tensor([[1] * tokens + [0] * 3])
        return [[torch.cat([text, 50 * torch.ones(1, 3, text.shape[-1])], dim=1), {"attention_mask": mask}]]

    def steered(positive, negative):
        return sample(name, pack.payload.patch(model, negative, 0.6, rule=rule, adaptive=adaptive), positive)

    if "attention_mask" not in model.model.extra_conds(**padded(1, 12)[0][1], device="cpu", noise=torch.zeros(1)):
        pytest.skip(f"the {name} of this ComfyUI reads no mask")
    expected = steered(conditioning(name, 1), conditioning(name, 2, tokens=9))
    assert error(steered(padded(1, 12), padded(2, 9)), expected) < BAR


@pytest.mark.parametrize("name", ["Ideogram 4"])
def test_calls_without_any_text(pack, model, name):
    """The other half of CFG, which ComfyUI calls with the picture alone; and a prompt that is none."""
    positive, negative, none = conditioning(name, 1), conditioning(name, 2, tokens=9), [[None, {}]]
    patched = pack.payload.patch(model, negative, 0.6, rule="difference")
    steered = sample(name, patched, positive, none, cfg=3.0)
    assert torch.equal(sample(name, patched, none), sample(name, model, none))
    steer = Steer([negative[0][0]], alphas(0.6), "difference")
    expected = sample_apart(name, model, positive, none, 3.0, lambda: by_hand(name, model, steer))
    assert error(steered, expected) < 3 * BAR


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
    "name, counts, rule",
    [
        ("Z-Image", (2, 1, 0), "difference"),
        ("Z-Image", (1, 2, 0), "nasa"),
        ("Z-Image Omni", (2, 3, 2), "difference"),
        ("Z-Image Omni", (1, 0, 0), "vsf"),
        ("Z-Image Omni", (2, 2, 3), "nasa"),
    ],
)
def test_reference_pictures_of_z_image_omni_are_not_steered(pack, model, name, counts, rule):
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
        expected = sample_apart(name, model, positive, uncond, 3.0, lambda: by_hand(name, model, steer))
        assert error(steered, expected) < 3 * BAR


@pytest.mark.parametrize("name", ["HiDream-I1"])
def test_a_picture_to_edit_is_not_steered_where_it_lies_among_the_pictures_tokens(pack, model, name):
    """HiDream-E1: to the right of the latents, so that every row of tokens holds both. Seen in the first block."""
    latent = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(4))
    positive, negative = conditioning(name, 1, concat_latent_image=latent), conditioning(name, 2, tokens=9)
    seen = []
    out = model.model.diffusion_model.double_stream_blocks[0].block.attn1.to_out
    handle = out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    half = {"mask": torch.ones(1, 48, 64), "mask_strength": 0.5, "set_area_to_bounds": False}
    for entry in ([], negative, conditioning(name, 2, tokens=9, **half)):
        sample(name, pack.payload.patch(model, entry, 0.6, rule="nasa") if entry else model, positive, steps=1)
    handle.remove()
    plain, steered, masked = (z.unflatten(1, (3, 8)) for z in seen if z.shape[1] == 24)  # others are the negatives'
    for z, part in ((steered, 1.0), (masked, 0.5)):
        assert error(z[:, :, 4:], plain[:, :, 4:]) < BAR
        assert error(z[:, :, :4] - plain[:, :, :4], part * (steered - plain)[:, :, :4]) < 10 * BAR
        assert error(z[:, :, :4], plain[:, :, :4]) > 0.01


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["HiDream-O1"])
def test_a_language_model_whose_own_cache_is_empty_or_full(pack, model, name, rule):
    """It keeps the keys and values of the last two prompts, then asks for the picture alone: the same picture."""
    positive, negative, network = conditioning(name, 1), conditioning(name, 2, tokens=9), model.model.diffusion_model
    patched, steered = pack.payload.patch(model, negative, 0.6, rule=rule, adaptive=True), []
    for _ in range(2):
        network.clear_kv_cache()
        steered += [sample(name, patched, positive, steps=1), sample(name, patched, positive, steps=1)]
    assert max(error(one, steered[0]) for one in steered) < BAR
    assert len(network._kv_cache_entries) == 1  # the negative has taken no place in it
    assert error(sample(name, model, positive, steps=1), steered[0]) > 100 * BAR


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["HiDream-O1"])
def test_reference_pictures_of_a_language_model_are_not_steered(pack, model, name, rule):
    """They follow the picture, and what it sees of them lies among the words, of a negative too if it has some."""
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(4))
    positive = conditioning(name, 1, reference_latents=[picture])
    negative = conditioning(name, 2, tokens=9)
    with by_hand(name, model, Steer([negative[0][0]], alphas(0.6), rule)):
        expected = sample(name, model, positive)
    assert error(sample(name, pack.payload.patch(model, negative, 0.6, rule=rule), positive), expected) < BAR
    plain = sample(name, model, positive)
    assert error(plain, sample(name, model, conditioning(name, 1))) > 100 * BAR
    assert error(sample(name, pack.payload.patch(model, positive, 1.0, rule="difference"), positive), plain) < BAR


@pytest.mark.parametrize("name", ["CogVideoX"])
def test_blocks_that_are_called_without_options(pack, model, name):
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    patched = pack.payload.patch(model, negative, 0.6)
    expected = sample(name, patched, positive)
    hook = {"hook": lambda block, args, given: (args, {**given, "transformer_options": None}), "with_kwargs": True}
    handles = [block.register_forward_pre_hook(**hook) for block in joint_blocks(model)]
    assert torch.equal(sample(name, patched, positive), expected)
    for handle in handles:
        handle.remove()
    assert not torch.equal(expected, sample(name, model, positive))
