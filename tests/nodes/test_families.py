"""NASA in every family of models, against the formula applied by hand with hooks on the raw modules.

Random weights: this proves the wiring, not the quality of pictures.
"""

from functools import cache

import pytest
import torch
from comfy.nested_tensor import NestedTensor
from families import ALL, FAMILIES, build, conditioning, families, sample, sample_apart
from truths import ALPHA, attentions, recorded, truth


@cache
def built(name):
    return build(name)


@pytest.fixture
def model(request):
    """The family's model, whose weights and modules must be the same after every test."""
    name = request.getfixturevalue("name")
    model = built(name)
    sample(name, model, conditioning(name, 1, positive=True), steps=1)  # ComfyUI leaves marks of its own
    before = state(model)
    yield model
    assert all(map(torch.equal, state(model)[0], before[0]))
    assert state(model)[1] == before[1]


def state(model):
    modules = {name: sorted(module.__dict__) for name, module in model.model.named_modules()}
    return [value.clone() for value in model.model.state_dict().values()], modules


def close(actual, expected, times=1.0):
    """To fp32 rounding: 1e-4 relative, and absolute 1e-4 (or `times` that) of the scale of what is compared."""
    atol = 1e-4 * max(1.0, expected.std().item()) * times
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)
    return atol


@pytest.mark.parametrize("name", FAMILIES)
def test_formula(pack, model, name):
    """Two steps, two latents; positive and negative of different length; every cross-attention layer by itself too."""
    positive, negative = conditioning(name, 1, positive=True), conditioning(name, 2, tokens=9)
    with recorded(name, model) as plain_layers:
        plain = sample(name, model, positive)
    with truth(name, model, negative), recorded(name, model) as expected_layers:
        expected = sample(name, model, positive)
    with recorded(name, model) as layers:
        steered = sample(name, pack.payload.patch(model, negative, ALPHA), positive)
    atol = close(steered, expected)
    assert (steered - plain).abs().max() > 100 * atol
    assert layers.keys() == expected_layers.keys() == attentions(name, model).keys()
    for key in layers:
        atol = close(layers[key], expected_layers[key], times=5)  # sharp softmaxes magnify rounding from layer to layer
        assert (layers[key] - plain_layers[key]).abs().max() > 100 * atol, key
    assert torch.equal(sample(name, model, positive), plain)


RULES = [("nasa", False), ("nasa", True), ("difference", False), ("vsf", False), ("vsf", True)]
DEEP = "SD 1.5", "SDXL", "SSD-1B", "Vega", "KOALA-700M", "KOALA-1B"  # SD 2.1's layers many times over
ONE_OF_EACH = [
    "SD 2.1", "PixArt-sigma", "HunyuanDiT", "LTX-Video", "LTX-Video 2.3", "Wan 2.1 I2V", "Cosmos-Predict2 T2I",
    "Cosmos 1", "Kandinsky 5",
]  # fmt: skip
EITHER_WAY = [(name, True) for name in FAMILIES if name not in DEEP] + [(name, False) for name in ONE_OF_EACH]


@pytest.mark.parametrize("name, kernel", EITHER_WAY)
def test_every_rule_and_adaptive(pack, model, name, kernel, monkeypatch):
    """With masses from torch's kernel, and asked for by attention where it gives none."""
    positive, negative = conditioning(name, 1, positive=True), conditioning(name, 2, tokens=9)
    # ComfyUI gives the second prompt of a batch of ACE-Step 1.5 other timbre tokens than the first.
    batch, bar = 1 if name == "ACE-Step 1.5" else None, 1e-5
    plain = sample(name, model, positive, steps=1, batch=batch)
    if not kernel:
        monkeypatch.setattr(pack.attention, "EXACT", ())
    for rule, adaptive in RULES:
        with truth(name, model, negative, rule=rule, adaptive=adaptive, positive=positive):
            expected = sample(name, model, positive, steps=1, batch=batch)
        patched = pack.payload.patch(model, negative, ALPHA, rule=rule, adaptive=adaptive)
        error = (sample(name, patched, positive, steps=1, batch=batch) - expected).abs().max() / expected.abs().max()
        if (rule, adaptive) == ("nasa", False):
            bar = max(bar, 10 * error)  # what deep networks with sharp softmaxes make of rounding
        assert error < bar, (rule, adaptive)
        assert (expected - plain).abs().max() > 100 * bar * expected.abs().max(), (rule, adaptive)
    assert torch.equal(sample(name, model, positive, steps=1, batch=batch), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_cfg_steers_the_positive_alone(pack, model, name):
    positive, other = conditioning(name, 1, positive=True), conditioning(name, 3, tokens=12, positive=True)
    negative = conditioning(name, 2, tokens=9)
    plain = sample(name, model, positive, other, cfg=3.0)
    steered = sample(name, pack.payload.patch(model, negative, ALPHA), positive, other, cfg=3.0)
    if name == "ACE-Step 1.5":  # what its rows read depends on how many there are (ComfyUI's unpack_timbre_embeddings)
        with truth(name, model, negative, where=lambda key, z: torch.tensor([0.0, 0.0, 1.0, 1.0]).view(4, 1, 1)):
            expected = sample(name, model, positive, other, cfg=3.0)
    else:
        expected = sample_apart(name, model, positive, other, 3.0, lambda: truth(name, model, negative))
    atol = close(steered, expected, times=3)
    assert (steered - plain).abs().max() > 100 * atol


def over_tokens(name, map):
    """map [height, width] over latents -> `where` of `truth`, as the family cuts latents into tokens."""

    def where(key, z):
        layout, height = FAMILIES[name].layout, map.shape[0]
        over_time = "time_stack" in key  # a row for every place, a token for every frame
        patch = {"unet": round(height / (len(z) if over_time else z.shape[1]) ** 0.5), "ltx_video": 1}.get(layout, 2)
        patch = (16, 1) if layout == "ace_step" else patch
        tokens = torch.nn.functional.avg_pool2d(map[None, None], patch).flatten()
        if over_time:
            return tokens[:, None, None]
        if len(FAMILIES[name].latent) == 4:
            tokens = tokens.repeat(FAMILIES[name].latent[1])
        added = {"Wan 2.1 FunControl": (16, 0), "Wan 2.1 HuMo": (0, 16), "Wan 2.2 S2V": (0, 16)}.get(name, (0, 0))
        return torch.nn.functional.pad(tokens, added).unsqueeze(-1)

    return where


def masked(height, width):
    """The left half of a picture, as ConditioningSetMask hands it over; and the same over latents."""
    mask = torch.zeros(1, 8 * height, 8 * width)
    mask[..., : 4 * width] = 1.0
    return {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}, mask[0, ::8, ::8]


def lower_half(name):
    """An area as ComfyUI's nodes set it, and its strength over latents: feathered over a quarter, at most 8 latents."""
    *frames, height, width = FAMILIES[name].latent[1:]
    area = ("percentage", *[1.0] * len(frames), 0.5, 1.0, *[0.0] * len(frames), 0.5, 0.0)
    map = torch.zeros(height, width)
    map[height // 2 :] = 1.0
    feather = min(8, height // 2 // 4)
    for n in range(feather):
        map[height // 2 + n] = (n + 1) / feather
    return {"area": area, "strength": 1.0}, map


@pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if not family.sound and len(family.latent) > 2]
)
def test_masked_negative(pack, model, name):
    """Tokens of a reference picture, beside the latents' own, are not steered then."""
    options, map = masked(*FAMILIES[name].latent[-2:])
    positive, negative = conditioning(name, 1, positive=True), conditioning(name, 2, tokens=9, **options)
    with truth(name, model, negative, where=over_tokens(name, map)):
        expected = sample(name, model, positive)
    steered = sample(name, pack.payload.patch(model, negative, ALPHA), positive)
    atol = close(steered, expected)
    everywhere = sample(name, pack.payload.patch(model, conditioning(name, 2, tokens=9), ALPHA), positive)
    assert (steered - everywhere).abs().max() > 100 * atol


@pytest.mark.parametrize("name", ["PixArt-sigma", "HunyuanDiT", "LTX-Video", "Wan 2.1 T2V", "Cosmos-Predict2 I2V"])
def test_negative_in_an_area(pack, model, name):
    options, map = lower_half(name)
    positive, negative = conditioning(name, 1, positive=True), conditioning(name, 2, tokens=9, **options)
    with truth(name, model, negative, where=over_tokens(name, map)):
        expected = sample(name, model, positive)
    steered = sample(name, pack.payload.patch(model, negative, ALPHA), positive)
    atol = close(steered, expected)
    assert (steered - sample(name, model, positive)).abs().max() > 100 * atol


@pytest.mark.parametrize("name", families("ace_step_15", "stable_audio"))
def test_a_negative_in_a_part_of_a_sound(pack, model, name):
    """An area, or a mask as long as the latents. Tokens that come before those of the sound are not steered."""
    positive, length = conditioning(name, 1), FAMILIES[name].latent[1]
    before = {"Stable Audio": 1, "Stable Audio 3": 3}.get(name, 0)
    half = torch.zeros(1, length)
    half[:, length // 2 :] = 1.0
    faded = half.clone()
    faded[0, length // 2 : length // 2 + 2] = torch.tensor([0.5, 1.0])
    for options, map in (
        ({"mask": half, "mask_strength": 1.0}, half),
        ({"area": ("percentage", 1.0, 0.5), "strength": 1.0}, faded),
    ):
        negative = conditioning(name, 2, tokens=9, **options)
        map = torch.nn.functional.avg_pool1d(
            torch.nn.functional.pad(map[None], (0, 1), mode="replicate"), 2
        ) if name == "ACE-Step 1.5" else map[None]  # fmt: skip
        map = torch.nn.functional.pad(map[0], (before, 0))[..., None]
        with truth(name, model, negative, where=lambda key, z, map=map: map):
            expected = sample(name, model, positive)
        atol = close(sample(name, pack.payload.patch(model, negative, ALPHA), positive), expected)
        everywhere = sample(name, pack.payload.patch(model, conditioning(name, 2, tokens=9), ALPHA), positive)
        assert (expected - everywhere).abs().max() > 100 * atol


@pytest.mark.parametrize("name", families("stable_audio"))
def test_a_mask_of_a_picture_does_not_fit_a_sound(pack, model, name):
    negative = conditioning(name, 2, tokens=9, **masked(8, 8)[0])
    with pytest.raises(ValueError, match="mask of the negative conditioning, of size 1 x 64 x 64 .* at 17 numbers: "):
        sample(name, pack.payload.patch(model, negative, ALPHA), conditioning(name, 1))


@pytest.mark.parametrize("name", ["PixArt-sigma", "Wan 2.1 T2V"])
def test_masked_negative_under_a_positive_in_an_area(pack, model, name):
    """The model sees the positive's area alone, and the negative's mask there."""
    height, width = FAMILIES[name].latent[-2:]
    options, map = masked(height, width)
    positive = conditioning(name, 1, **lower_half(name)[0])
    negative = conditioning(name, 2, tokens=9, **options)
    with truth(name, model, negative, where=over_tokens(name, map[height // 2 :])):
        expected = sample(name, model, positive)
    steered = sample(name, pack.payload.patch(model, negative, ALPHA), positive)
    atol = close(steered, expected)
    assert (steered - sample(name, model, positive)).abs().max() > 100 * atol


FIRST_BLOCKS = {
    "SDXL": ("in4-5", lambda key: key.startswith(("input_blocks.4.", "input_blocks.5."))),
    "KOALA-700M": ("out0", lambda key: key.startswith("output_blocks.0.")),
    "SVD": ("mid", lambda key: key.startswith("middle_block.")),
    "Wan 2.1 VACE": ("vace0", lambda key: key.startswith("vace_blocks.0.")),
    **dict.fromkeys(
        [
            "PixArt-alpha",
            "HunyuanDiT",
            "LTX-Video",
            "LTX-Video 2",
            "Wan 2.1 I2V",
            "Cosmos-Predict2 T2I",
            "Anima",
            "Kandinsky 5",
        ],
        ("0", lambda key: key.split(".")[1] == "0"),
    ),
}


@pytest.mark.parametrize("name", FIRST_BLOCKS)
def test_chosen_blocks(pack, model, name):
    blocks, only = FIRST_BLOCKS[name]
    positive, negative = conditioning(name, 1, positive=True), conditioning(name, 2, tokens=9)
    assert 0 < len(list(filter(only, attentions(name, model)))) < FAMILIES[name].layers
    with truth(name, model, negative, only=only):
        expected = sample(name, model, positive)
    steered = sample(name, pack.payload.patch(model, negative, ALPHA, blocks=blocks), positive)
    atol = close(steered, expected, times=3)
    assert (steered - sample(name, model, positive)).abs().max() > 100 * atol
    with pytest.raises(ValueError, match="99"):
        pack.payload.patch(model, negative, ALPHA, blocks="99")


@pytest.mark.parametrize("name", ["LTX-Video", "HunyuanDiT"])
def test_padding_of_the_negative_does_not_count(pack, model, name):
    """Whatever the encoder left in tokens that the model's masks leave out."""
    positive, negative = conditioning(name, 1, positive=True), conditioning(name, 2, tokens=9)
    steered = sample(name, pack.payload.patch(model, negative, ALPHA), positive)
    embedding, options = negative[0]
    embedding[:, -2:] *= -50
    if "conditioning_mt5xl" in options:
        options["conditioning_mt5xl"][:, -2:] *= -50
    atol = close(sample(name, pack.payload.patch(model, negative, ALPHA), positive), steered)
    embedding[:, 0] *= -50
    assert (sample(name, pack.payload.patch(model, negative, ALPHA), positive) - steered).abs().max() > 100 * atol


def test_ltx_video_without_a_mask_reads_every_token(pack):
    name = "LTX-Video"
    model, positive = built(name), conditioning(name, 1)
    negative = conditioning(name, 2, tokens=9, attention_mask=None)
    with truth(name, model, negative):
        expected = sample(name, model, positive)
    close(sample(name, pack.payload.patch(model, negative, ALPHA), positive), expected)


@pytest.mark.parametrize("name", families("ltx_video_2"))
def test_a_video_with_sound_has_no_places_but_strengths(pack, model, name):
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9, strength=0.5)
    with truth(name, model, negative, alpha=ALPHA / 2):
        expected = sample(name, model, positive)
    close(sample(name, pack.payload.patch(model, negative, ALPHA), positive), expected)


@pytest.mark.parametrize(
    "what, options",
    [
        ("A mask", masked(4, 4)[0]),
        ("A mask", masked(4, 4)[0] | {"set_area_to_bounds": True}),
        ("An area", {"area": (2, 2, 0, 0), "strength": 1.0}),
        ("An area", {"area": ("percentage", 0.5, 1.0, 0.5, 0.0), "strength": 1.0}),
    ],
)
@pytest.mark.parametrize("name", [name for name, family in ALL.items() if family.sound])
def test_a_place_in_a_video_with_sound_is_refused_by_its_true_cause(pack, name, what, options):
    """An area in percent took a part of the row in silence: of the video's first frames, or of nothing."""
    patched = pack.payload.patch(built(name), conditioning(name, 2, tokens=9, **options), ALPHA)
    with pytest.raises(ValueError) as raised:
        sample(name, patched, conditioning(name, 1))
    sentence = f"{what} of the negative conditioning has no place in this video, which ComfyUI samples in one row of "
    assert str(raised.value) == f"{sentence}numbers with its sound: take it off, so that the negative acts everywhere."


@pytest.mark.parametrize("sound", [0.0, 1.0])
@pytest.mark.parametrize("name", families("ltx_video_2"))
def test_a_first_frame_and_sound_that_stay(pack, model, name, sound):
    """Image to video: the parts that are not sampled have timestep 0, and where it shifts the text it counts."""
    frames = torch.ones(1, 1, 2, 4, 4)
    frames[:, :, 0] = 0.0
    mask = NestedTensor([frames, torch.full((1, 1, 5, 16), sound)])
    positive, negative = conditioning(name, 1), conditioning(name, 2, tokens=9)
    with truth(name, model, negative):
        expected = sample(name, model, positive, mask=mask)
    close(sample(name, pack.payload.patch(model, negative, ALPHA), positive, mask=mask), expected)


@pytest.mark.parametrize("name", ["Wan 2.1 I2V", "Wan 2.1 Camera"])
def test_the_negatives_own_picture_is_not_read(pack, model, name):
    positive = conditioning(name, 1, positive=True)
    negatives = conditioning(name, 2, tokens=9), conditioning(name, 2, tokens=9, positive=True)
    without, with_picture = (
        sample(name, pack.payload.patch(model, negative, ALPHA), positive) for negative in negatives
    )
    assert torch.equal(without, with_picture)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_text_encoder_is_named(pack, model, name):
    width = FAMILIES[name].width
    ((embedding, options),) = conditioning(name, 2)
    wider = [[torch.cat([embedding] * 3, dim=-1), options]]
    with pytest.raises(ValueError, match=rf"\b{3 * width}\b.*\b{width}\b"):
        pack.payload.patch(model, wider, ALPHA)


@pytest.mark.parametrize("name", families("hunyuan_dit", "kandinsky", "ace_step", "ace_step_15"))
def test_a_negative_without_what_the_family_reads_is_named(pack, model, name):
    ((embedding, options),) = conditioning(name, 2)
    for missing in options.keys() - {"lyrics_strength"}:
        rest = {key: value for key, value in options.items() if key != missing}
        with pytest.raises(ValueError, match=missing):
            pack.payload.patch(model, [[embedding, rest]], ALPHA)
