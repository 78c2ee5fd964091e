"""A negative without its padding: by the mask that its text encoder gives, or by its text."""

from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import pytest
import torch
from families import build, conditioning, sample

KEPT = "set padding to kept."


@pytest.fixture
def node(pack):
    return pack.nasa_patch.NASACrossAttentionPatch


@pytest.fixture(scope="module")
def demo(untrained_checkpoint):
    """Model and CLIP in the demo model's layout, with random weights."""
    model, clip = comfy.sd.load_checkpoint_guess_config(str(untrained_checkpoint))[:2]
    yield SimpleNamespace(model=model, clip=clip)
    comfy.model_management.unload_all_models()


@pytest.fixture
def graph(node, monkeypatch):
    """graph(*texts): the node runs in one whose negative prompt is these."""

    def graph(*texts):
        prompt = {str(n): {"class_type": "CLIPTextEncode", "inputs": {"text": text}} for n, text in enumerate(texts)}
        joined = {f"conditioning_{n + 1}": [str(n), 0] for n in range(len(texts))}
        prompt["7"] = {"class_type": "ConditioningCombine", "inputs": joined}
        prompt["8"] = {"class_type": "NASACrossAttentionPatch", "inputs": {"negative": ["7", 0]}}
        monkeypatch.setattr(node, "hidden", SimpleNamespace(dynprompt=prompt, unique_id="8"), raising=False)

    return graph


def encode(demo, text):
    return demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(text))


def lengths(pack, output):
    """How many tokens act of each entry."""
    (negative,) = pack.payload.negatives_of(output.args[0]).values()
    return [embedding.shape[1] for embedding, _ in negative.conditioning]


def masked(name, kept, tokens=12):
    mask = torch.zeros(1, tokens, dtype=torch.long)
    mask[:, kept] = 1
    return conditioning(name, 2, tokens, attention_mask=mask)


@pytest.mark.parametrize("kept", [slice(0, 5), slice(4, None)])
def test_left_out_by_the_mask_of_its_encoder(node, kept):
    """As klein's encoder gives one, which the model does not read: the picture of the words alone, whatever follows."""
    model, positive, negative = build("Flux 2"), conditioning("Flux 2", 1), masked("Flux 2", kept)
    ((embedding, options),) = negative
    alone = [[embedding[:, kept], {**options, "attention_mask": None}]]

    def picture(negative, **inputs):
        return sample("Flux 2", node.execute(model, negative, 0.6, 0.0, 1.0, **inputs).args[0], positive)

    left_out = picture(negative, padding=False)
    assert torch.equal(left_out, picture(alone))
    with_padding = picture(negative)
    assert torch.equal(with_padding, picture(negative, padding=True)) and not torch.equal(with_padding, left_out)


@pytest.mark.parametrize("name", ["Mochi", "HunyuanDiT"])
def test_a_model_that_hides_padding_by_itself_stays_as_it_is(pack, node, name):
    negative = masked(name, slice(0, 5), tokens=9)
    assert lengths(pack, node.execute(build(name), negative, 0.6, 0.0, 1.0, padding=False)) == [9]


@pytest.mark.parametrize(
    "texts, tokens", [(["red"], [3]), (["a red circle", "(blue:1.3)"], [5, 3]), (["red " * 80], [84])]
)
def test_left_out_by_its_text(pack, node, demo, graph, texts, tokens):
    """Start, words, end; a long one has two parts, of which the first is full."""
    graph(*texts)
    negative = [entry for text in texts for entry in encode(demo, text)]
    output = node.execute(demo.model, negative, 0.6, 0.0, 1.0, padding=False, clip=demo.clip)
    assert lengths(pack, output) == tokens


@pytest.mark.parametrize("clip, text, sentence", [
    (False, "red", "its text encoder gives no mask: connect to clip what its CLIP Text Encode has as clip, or "),
    (True, "blue", "its text cannot be read again: connect to clip what its CLIP Text Encode has as clip, or "),
])  # fmt: skip
def test_padding_that_cannot_be_told(node, demo, graph, clip, text, sentence):
    graph(text)
    with pytest.raises(ValueError) as raised:
        node.execute(
            demo.model, encode(demo, "red"), 0.6, 0.0, 1.0, padding=False, clip=demo.clip if clip else None
        )  # fmt: skip
    assert str(raised.value) == f"The padding of the negative cannot be told, as {sentence}{KEPT}"


def test_a_negative_of_several_texts(node):
    with pytest.raises(ValueError, match=f"of several texts, as this model reads it, cannot be told: {KEPT}$"):
        node.execute(build("HiDream-I1"), conditioning("HiDream-I1", 2), 0.6, 0.0, 1.0, padding=False)


def test_a_word_is_found_on_the_map_of_a_negative_without_padding(pack, node, demo, graph):
    graph("a red circle")
    negative = encode(demo, "a red circle")
    output = node.execute(demo.model, negative, 0.6, 0.0, 1.0, padding=False, clip=demo.clip)
    (steered,) = pack.payload.negatives_of(output.args[0]).values()
    number, found = pack.word.find("red", ["a red circle"], steered.conditioning, demo.clip)
    assert number == 0 and found.tolist() == [False, False, True, False, False]
