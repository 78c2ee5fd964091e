"""NASA Attention Map: where in a picture the negative acts, or a word of it, in every family."""

from functools import cache
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import pytest
import torch
from families import ALL, build, conditioning
from left_alone import assert_clean

#: One of each layout with places; models with sound keep all in one row, in which nothing has a place.
PLACED = {family.layout: name for name, family in ALL.items() if len(family.latent) > 2 and not family.sound}


@pytest.fixture
def node(pack):
    return pack.attention_map.NASAAttentionMap


@pytest.fixture(scope="module")
def demo(untrained_checkpoint):
    """Model, CLIP and VAE in the demo model's layout, with random weights; tests/demo measures the trained one."""
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(untrained_checkpoint))[:3]
    yield SimpleNamespace(model=model, clip=clip, vae=vae)
    comfy.model_management.unload_all_models()


@pytest.fixture
def graph(pack, node, monkeypatch):
    """graph(text): the node runs in one whose negative prompt is this text"""

    def graph(text):
        prompt = {
            "1": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["9", 1]}},
            "2": {"class_type": "NASACrossAttentionPatch", "inputs": {"negative": ["1", 0], "model": ["9", 0]}},
            "3": {"class_type": "NASAAttentionMap", "inputs": {"model": ["2", 0], "positive": ["8", 0], "word": "x"}},
        }
        monkeypatch.setattr(node, "hidden", SimpleNamespace(dynprompt=prompt, unique_id="3"), raising=False)

    return graph


def encode(demo, text):
    return demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(text))


@cache
def built(name):
    return build(name)


@pytest.mark.parametrize("word", [False, True])
@pytest.mark.parametrize("name", PLACED.values())
def test_the_map_lies_where_the_negative_is_masked_to(pack, name, word):
    """In the left half of the picture, in every block, by the size of the change; a word is found everywhere."""
    model, (height, width) = built(name), ALL[name].latent[-2:]
    half = torch.zeros(1, 8 * height, 8 * width)
    half[..., : 8 * (width // 2)] = 1.0
    negative = conditioning(name, 2, mask=half, mask_strength=1.0, set_area_to_bounds=False)
    patched = pack.payload.patch(model, negative, 0.6, rule="nasa")
    samples = torch.randn(2, *ALL[name].latent, generator=torch.Generator().manual_seed(0))
    negatives = pack.payload.negatives_of(patched)
    which = torch.arange(negative[0][0].shape[1]) == 1 if word else None
    with torch.inference_mode():
        try:
            maps = pack.look.look(patched, negatives, conditioning(name, 1, positive=True), samples, 0.7, which)
        except ValueError as error:
            assert word and "another number of pieces" in str(error)
            return
    assert_clean(model)
    assert [*maps] == [*pack.layouts.find_layout(model.model.diffusion_model).blocks(model.model.diffusion_model)]
    for map in maps.values():
        assert map.shape[0] == 2 and torch.isfinite(map).all()
        if word:
            assert 0 < map.min() and map.max() < 1
        elif map.shape[-1] > 1:
            assert map[..., : map.shape[-1] // 2].amin() > 0 and map[..., -1].abs().max() == 0
    assert torch.isfinite(pack.overlay.together(maps)).all()


@pytest.fixture
def shown(pack, node, demo, graph):
    """shown(prompt, negative, ...) -> the plain pictures, overlay and mask of the node; the model steered by 1.3"""

    def shown(prompt, negative, batch=1, patched=True, clip=None, text=None, noises=17, **inputs):
        graph(negative if text is None else text)
        preset = pack.presets.all_presets()["snoopi-shapes"]
        model, sigmas = pack.one_step.steps(pack.one_step.with_preset(demo.model, preset))
        steered = pack.payload.patch(model, encode(demo, negative), 1.3, rule="auto") if patched else model
        with torch.inference_mode():
            latent = {"samples": torch.zeros(batch, 4, 4, 4)}
            latent = pack.one_step.sample(steered, sigmas, encode(demo, prompt), latent, noises)
            image = demo.vae.decode(latent["samples"])
            return image, *node.execute(steered, encode(demo, prompt), latent, image, clip or demo.clip, **inputs).args

    return shown


def test_masks_reach_from_0_to_1_and_overlays_are_pictures(shown):
    image, overlay, mask = shown("a colored circle", "red", batch=2)
    assert mask.amin(dim=(1, 2)).tolist() == [0, 0] and mask.amax(dim=(1, 2)).tolist() == [1, 1]
    assert 0 <= overlay.min() and overlay.max() <= 1 and overlay.dtype == image.dtype == mask.dtype == torch.float32


def test_each_block_has_a_map_of_its_own_on_one_sheet(shown):
    _, sheet, masks = shown("a colored circle", "red", batch=2, show="each block")
    assert len(sheet) == 1 and len(masks) == 2 * len(["in1", "mid", "out0", "out1"])
    assert sheet.shape[1] > 2 * 256 and sheet.shape[2] > 4 * 256


def test_a_model_that_is_not_steered_is_one_sentence(shown):
    with pytest.raises(ValueError, match="^The model is not steered away .*connect the model of a NASA"):
        shown("a colored circle", "red", patched=False)


@pytest.mark.parametrize("word", ["blue", "re", "red circle"])
def test_a_word_that_is_not_in_the_negative_is_one_sentence(shown, word):
    with pytest.raises(ValueError, match=f"^The word '{word}' is not in the negative prompt: .*leave word empty"):
        shown("a colored circle", "red", word=word)


def test_a_word_without_a_clip_is_one_sentence(node, demo, pack, shown):
    with pytest.raises(ValueError, match="^clip is not connected, which a word needs: connect"):
        node.execute(
            pack.payload.patch(demo.model, encode(demo, "red"), 1.0), encode(demo, "a"),
            {"samples": torch.zeros(1, 4, 4, 4)}, torch.zeros(1, 32, 32, 3), word="red",
        )  # fmt: skip


def test_a_negative_that_the_graph_does_not_hold_is_one_sentence(shown):
    with pytest.raises(ValueError, match="^The negative prompt with the word 'red' cannot be read again: connect"):
        shown("a colored circle", "red", text="red, computed", word="red")


def test_a_picture_of_another_latent_is_one_sentence(node, demo, pack):
    steered = pack.payload.patch(demo.model, encode(demo, "red"), 1.0)
    for image, told in ((torch.zeros(2, 32, 32, 3), "holds 2 pictures"), (None, "is no picture")):
        with pytest.raises(ValueError, match=f"^The image {told}.*VAE Decode"):
            node.execute(steered, encode(demo, "a"), {"samples": torch.zeros(1, 4, 4, 4)}, image)


@pytest.mark.parametrize(
    ("text", "word", "tokens"),
    [
        ("red", "red", [1]),
        ("a red circle", "circle", [3]),
        ("a red circle", "Red Circle", [2, 3]),
        ("a (red:1.3) circle, red", "red", [2, 5]),
        ("redder red", "red", [2]),
        ("cat " * 75 + "red", "red", [77 + 1]),
    ],
)
def test_tokens_of_a_word(pack, demo, text, word, tokens):
    conditioning = [*encode(demo, "another"), *encode(demo, text)]
    number, found = pack.word.find(word, ["a cat", text], conditioning, demo.clip)
    assert number == 1 and len(found) == conditioning[1][0].shape[1]
    if "redder" in text:
        assert found.sum() == 1
    else:
        assert found.nonzero().flatten().tolist() == tokens


class WithoutWeights:
    """Qwen-Image's own tokenizer, which weighs no words and puts a template around them; embeddings by number alone."""

    BEFORE = 34  # tokens of the template that the encoder takes off again

    def __init__(self):
        import comfy.text_encoders.qwen_image

        self.tokenizer = comfy.text_encoders.qwen_image.QwenImageTokenizer()

    def tokenize(self, text):
        return self.tokenizer.tokenize_with_weights(text)

    def encode_from_tokens_scheduled(self, tokens):
        numbers = torch.tensor([token for token, *_ in next(iter(tokens.values()))[0]])[self.BEFORE :]
        return [[torch.stack([numbers.cos(), numbers.sin()], dim=-1)[None], {}]]


@pytest.mark.parametrize(("text", "word", "tokens"), [("a red car", "red", [1]), ("red, a car, red", "red", [0, 5])])
def test_tokens_of_a_word_where_the_encoder_weighs_none(pack, text, word, tokens):
    clip = WithoutWeights()
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    _, found = pack.word.find(word, [text], conditioning, clip)
    assert found.nonzero().flatten().tolist() == tokens and len(found) > len(tokens)
