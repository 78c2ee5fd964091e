"""Malformed conditionings, latents, models and numbers: one sentence before any sampling, or the picture of a KSampler."""

import math
import re

import comfy.sample
import comfy.samplers
import numpy
import pytest
import torch

NAN, INF = math.nan, math.inf
POOLED = {"pooled_output": torch.zeros(1, 8)}


def ones(*shape):
    return torch.ones(shape)


def drawn(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(4))


def embedding(*shape, seed=3):
    return torch.randn(shape or (1, 77, 24), generator=torch.Generator().manual_seed(seed))


def with_nan(tensor, value=NAN):
    tensor.view(-1)[0] = value
    return tensor


class Anything:
    def __repr__(self):
        return "x" * 100_000


#: Whole CONDITIONINGs, and what the sentence on them says.
CONDITIONINGS = {
    "None": (None, "is empty: connect"),
    "no entries": ([], "is empty: connect"),
    "a tuple of none": ((), "is empty: connect"),
    "a tensor": (embedding(), "no list of pairs"),
    "text": ("a cat", "no list of pairs"),
    "a number": (3, "no list of pairs"),
    "a dict": ({"cond": embedding()}, "no list of pairs"),
    "a generator": (iter([[embedding(), {}]]), "no list of pairs"),
    "an object": (Anything(), "no list of pairs"),
    "an entry of one": ([[embedding()]], "no list of pairs"),
    "an empty entry": ([[]], "no list of pairs"),
    "an entry None": ([None], "no list of pairs"),
    "an entry that is a tensor": ([embedding()], "no list of pairs"),
    "an entry that is a dict": ([{0: embedding(), 1: {}}], "no list of pairs"),
    "an entry that is text": (["ab"], "no list of pairs"),
    "one good entry and one of one": ([[embedding(), {}], [embedding()]], "no list of pairs"),
    "options None": ([[embedding(), None]], "no list of pairs"),
    "options a list": ([[embedding(), []]], "no list of pairs"),
    "options text": ([[embedding(), "{}"]], "no list of pairs"),
    "embedding None": ([[None, {}]], "holds no text embedding"),
    "embedding a list": ([[[[0.0] * 24] * 77, {}]], "holds no text embedding"),
    "embedding of numpy": ([[numpy.zeros((1, 77, 24)), {}]], "holds no text embedding"),
    "embedding of 2 dimensions": ([[embedding(77, 24), {}]], "holds no text embedding"),
    "embedding of 4 dimensions": ([[embedding(1, 1, 77, 24), {}]], "holds no text embedding"),
    "embedding of no dimension": ([[torch.tensor(1.0), {}]], "holds no text embedding"),
    "no tokens": ([[embedding(1, 0, 24), {}]], "holds no text embedding"),
    "no rows": ([[embedding(0, 77, 24), {}]], "holds no text embedding"),
    "no width": ([[embedding(1, 77, 0), {}]], "holds no text embedding"),
    "meta": ([[embedding().to("meta"), {}]], "holds no text embedding"),
    "another width": ([[embedding(1, 77, 25), {}]], "is 25 wide, but this model reads text 24 wide"),
    "sparse of another width": ([[embedding(1, 77, 25).to_sparse(), {}]], "is 25 wide, but"),
    "NaN": ([[with_nan(embedding()), {}]], "NaN or infinite numbers: encode"),
    "infinite": ([[with_nan(embedding(), -INF), {}]], "NaN or infinite numbers: encode"),
    "NaN in fp16": ([[with_nan(embedding()).half(), {}]], "NaN or infinite numbers: encode"),
    "NaN in bf16": ([[with_nan(embedding()).bfloat16(), {}]], "NaN or infinite numbers: encode"),
    "NaN in fp8": ([[with_nan(embedding()).to(torch.float8_e4m3fn), {}]], "NaN or infinite numbers: encode"),
    "NaN in the last of three": ([[embedding(), {}]] * 2 + [[with_nan(embedding()), {}]], "NaN or infinite"),
    "NaN where sparse": ([[with_nan(embedding()).to_sparse(), {}]], "NaN or infinite numbers: encode"),
    "too large for fp32": ([[with_nan(embedding().double(), 1e300), {}]], "NaN or infinite numbers: encode"),
    "NaN in complex": ([[with_nan(embedding().to(torch.complex64)), {}]], "NaN or infinite numbers: encode"),
    "pooled NaN": ([[embedding(), {"pooled_output": with_nan(ones(1, 8))}]], "NaN or infinite numbers: encode"),
}

#: Options of an entry for an 8 x 8 latent and 3 pictures, and what the sentence says.
OPTIONS = {
    **{f"{name} {value!r}": ({name: value}, f"has {value!r} as its {name}: give it a number")
       for name in ("start_percent", "end_percent", "strength", "mask_strength") for value in (None, NAN, "0.5", [0.5])},
    **{f"{name} infinite": ({name: INF}, f"has inf as its {name}: give") for name in ("strength", "mask_strength")},
    "start of two numbers": ({"start_percent": ones(2)}, "as its start_percent: give it a number"),
    "start of an object": ({"start_percent": Anything()}, "as its start_percent: give it a number"),
    "clip schedule NaN": ({"clip_start_percent": NAN, "clip_end_percent": 1.0}, "as its clip_start_percent: give"),
    "area below": ({"area": (8, 8, 8, 0)}, "An area of the {name} conditioning, (8, 8, 8, 0), lies outside"),
    "area far right": ({"area": (8, 8, 0, 900)}, "lies outside of the picture of about 64x64 pixels"),
    "area above": ({"area": (4, 4, -2, 0)}, "lies outside of the picture"),
    "area without height": ({"area": (0, 4, 2, 0)}, "lies outside of the picture"),
    "area without width": ({"area": (4, 0, 2, 0)}, "lies outside of the picture"),
    "area of negative height": ({"area": (-4, 4, 0, 0)}, "lies outside of the picture"),
    "area of 3 numbers": ({"area": (8, 8, 4)}, "An area of the {name} conditioning, (8, 8, 4), lies"),
    "area of no numbers": ({"area": ()}, "An area of the {name}"),
    "area None": ({"area": None}, "An area of the {name} conditioning, None, lies outside"),
    "area of floats": ({"area": (4.0, 4.0, 0.0, 0.0)}, "An area of the {name}"),
    "area of texts": ({"area": ("4", "4", "0", "0")}, "An area of the {name}"),
    "area a number": ({"area": 4}, "An area of the {name}"),
    "area of an object": ({"area": Anything()}, "An area of the {name}"),
    "area of very many": ({"area": tuple(range(100_000))}, "An area of the {name}"),
    "percentage outside": ({"area": ("percentage", 0.5, 0.5, 1.0, 0.0)}, "('percentage', 0.5, 0.5, 1.0, 0.0), lies"),
    "percentage beyond": ({"area": ("percentage", 0.5, 0.5, 0.0, 3.0)}, "lies outside of the picture"),
    "percentage NaN": ({"area": ("percentage", NAN, 0.5, 0.0, 0.0)}, "lies outside of the picture"),
    "percentage infinite": ({"area": ("percentage", INF, 0.5, 0.0, 0.0)}, "lies outside of the picture"),
    "percentage alone": ({"area": ("percentage",)}, "An area of the {name}"),
    "percentages": ({"area": ("percent", 0.5, 0.5, 0.0, 0.0)}, "An area of the {name}"),
    "mask None": ({"mask": None}, "A mask of the {name} conditioning is no picture (NoneType): connect"),
    "mask a list": ({"mask": [[1.0]]}, "is no picture (list)"),
    "mask of numpy": ({"mask": numpy.ones((1, 8, 8))}, "is no picture (ndarray)"),
    "mask of 1 dimension": ({"mask": ones(8)}, "is no picture (8)"),
    "mask of no dimension": ({"mask": torch.tensor(1.0)}, "is no picture ("),
    "mask of no pictures": ({"mask": ones(0, 8, 8)}, "is no picture (0 x 8 x 8)"),
    "mask of no height": ({"mask": ones(1, 0, 8)}, "is no picture (1 x 0 x 8)"),
    "mask sparse": ({"mask": ones(1, 8, 8).to_sparse()}, "is no picture (1 x 8 x 8)"),
    "mask NaN": ({"mask": with_nan(ones(1, 8, 8))}, "A mask of the {name} conditioning holds NaN or infinite"),
    "mask infinite": ({"mask": with_nan(ones(1, 16, 16), INF)}, "holds NaN or infinite numbers: make it again"),
    "mask of 2 pictures": ({"mask": ones(2, 8, 8)}, "of size 2 x 8 x 8 in float32, does not fit a batch of 3"),
    "mask of 4 dimensions": ({"mask": ones(1, 1, 8, 8)}, "of size 1 x 1 x 8 x 8 in float32, does not fit"),
    "mask of channels": ({"mask": ones(1, 3, 16, 16)}, "of size 1 x 3 x 16 x 16 in float32, does not fit"),
    "mask of 5 dimensions": ({"mask": ones(1, 1, 1, 8, 8)}, "of size 1 x 1 x 1 x 8 x 8 in float32, does not"),
    "mask of bools in another size": ({"mask": ones(1, 16, 16) > 0}, "of size 1 x 16 x 16 in bool, does not fit"),
    "mask of integers in another size": ({"mask": ones(1, 16, 16).long()}, "in int64, does not fit a batch of 3"),
}  # fmt: skip

#: Entries that a KSampler accepts: the picture must be the same.
ACCEPTED = {
    "a tuple of tuples": lambda: ((embedding(), {}),),
    "entries of three": lambda: [[embedding(), {}, "more"]],
    "fp16": lambda: [[embedding().half(), {}]],
    "bf16": lambda: [[embedding().bfloat16(), {}]],
    "fp64": lambda: [[embedding().double(), {}]],
    "fp8 e4m3": lambda: [[embedding().to(torch.float8_e4m3fn), {}]],
    "fp8 e5m2": lambda: [[embedding().to(torch.float8_e5m2), {}]],
    "int64": lambda: [[(3 * embedding()).long(), {}]],
    "int32": lambda: [[(3 * embedding()).int(), {}]],
    "int8": lambda: [[(3 * embedding()).to(torch.int8), {}]],
    "uint8": lambda: [[(3 * embedding()).abs().to(torch.uint8), {}]],
    "bool": lambda: [[embedding() > 0, {}]],
    "not contiguous": lambda: [[embedding(1, 24, 77).transpose(1, 2), {}]],
    "a row for each picture": lambda: [[embedding(3, 77, 24), {}]],
    "fewer rows than pictures": lambda: [[embedding(2, 77, 24), {}]],
    "more rows than pictures": lambda: [[embedding(5, 77, 24), {}]],
    "one token": lambda: [[embedding(1, 1, 24), {}]],
    "pooled of another width": lambda: [[embedding(), {"pooled_output": ones(1, 3)}]],
    "pooled None": lambda: [[embedding(), {"pooled_output": None}]],
    "start beyond the end": lambda: [[embedding(), {"start_percent": -1.0, "end_percent": 2.0}]],
    "start infinite": lambda: [[embedding(), {"end_percent": INF}]],
    "start a tensor": lambda: [[embedding(), {"start_percent": torch.tensor(0.0)}]],
    "start of numpy": lambda: [[embedding(), {"start_percent": numpy.float32(0.0)}]],
    "area over the edge": lambda: [[embedding(), {"area": (8, 8, 4, 4)}], [embedding(seed=5), {}]],
    "area of the whole": lambda: [[embedding(), {"area": (800, 800, 0, 0)}]],
    "area a list": lambda: [[embedding(), {"area": [4, 4, 0, 0]}], [embedding(seed=5), {}]],
    "area of a width alone": lambda: [[embedding(), {"area": (4, 4)}], [embedding(seed=5), {}]],
    "area of a video": lambda: [[embedding(), {"area": (4, 4, 4, 0, 0, 0)}], [embedding(seed=5), {}]],
    "area of 1 number": lambda: [[embedding(), {"area": (8,)}], [embedding(seed=5), {}]],
    "area of NaN": lambda: [[embedding(), {"area": (NAN, 4, 0, 0)}], [embedding(seed=5), {}]],
    "area a tensor": lambda: [[embedding(), {"area": torch.tensor([4, 4, 0, 0])}], [embedding(seed=5), {}]],
    "area of numpy": lambda: [[embedding(), {"area": numpy.array([4, 4, 0, 0])}], [embedding(seed=5), {}]],
    "percentage of 3": lambda: [[embedding(), {"area": ("percentage", 0.5, 0.5, 0.0)}], [embedding(seed=5), {}]],
    "percentage": lambda: [[embedding(), {"area": ("percentage", 0.5, 0.5, 0.5, 0.5)}], [embedding(seed=5), {}]],
    "percentage too large": lambda: [[embedding(), {"area": ("percentage", 5.0, 1.0, 0.5, 0.0)}], [embedding(), {}]],
    "mask of 2 dimensions": lambda: [[embedding(), {"mask": ones(8, 8)}]],
    "mask of another size": lambda: [[embedding(), {"mask": drawn(1, 37, 11)}], [embedding(seed=5), {}]],
    "mask of bools": lambda: [[embedding(), {"mask": ones(1, 8, 8) > 0}]],
    "mask of integers": lambda: [[embedding(), {"mask": ones(1, 8, 8).long()}]],
    "mask in fp16": lambda: [[embedding(), {"mask": ones(1, 16, 16).half()}]],
    "mask for each picture": lambda: [[embedding(), {"mask": drawn(3, 8, 8)}], [embedding(seed=5), {}]],
    "masks for more pictures": lambda: [[embedding(), {"mask": drawn(5, 8, 8)}], [embedding(seed=5), {}]],
    "mask of zeros": lambda: [[embedding(), {"mask": 0 * ones(1, 8, 8)}], [embedding(seed=5), {}]],
    "mask to its bounds": lambda: [[embedding(), {"mask": ones(1, 8, 8), "set_area_to_bounds": True}]],
    "strength 0": lambda: [[embedding(), {"strength": 0.0}], [embedding(seed=5), {}]],
    "strength an integer": lambda: [[embedding(), {"strength": 1}]],
    "default": lambda: [[embedding(), {"mask": drawn(1, 8, 8)}], [embedding(seed=5), {"default": True}]],
    "keys of others": lambda: [[embedding(), {"my_pack": Anything()}]],
}  # fmt: skip


@pytest.fixture
def calls_of_the_network(model):
    """How often it was called."""
    calls = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def told(calls, execute, *parts):
    """The one sentence that execute() ends in, before any sampling."""
    with pytest.raises(ValueError) as error:
        execute()
    sentence = str(error.value)
    assert len(sentence) <= 600 and sentence.endswith(".") and "\n" not in sentence
    assert all(part in sentence for part in parts), sentence
    assert not calls
    return sentence


@pytest.fixture
def steered(pack, model, text, sample):
    """steered(negative, batch=3): a KSampler's picture with NASA."""

    def steered(negative, batch=3, alpha=0.4):
        patched = pack.nasa_patch.NASACrossAttentionPatch.execute(model, negative, alpha, 0.0, 1.0).args[0]
        return sample(patched, text(1), batch=batch)

    return steered


@pytest.fixture
def latent():
    return {"samples": torch.zeros(3, 4, 8, 8)}


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_conditionings_that_are_none(model, text, run, steered, latent, calls_of_the_network, name):
    wrong, part = CONDITIONINGS[name]
    told(calls_of_the_network, lambda: run(model, wrong, latent), f"The positive conditioning {part[:2]}"[:24], part)
    if wrong is not None:  # no negative at all is fine
        told(calls_of_the_network, lambda: run(model, text(1), latent, negative=wrong), "The negative", part)
    told(calls_of_the_network, lambda: steered(wrong), "The negative conditioning", part)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_make_no_sense(model, text, run, steered, latent, calls_of_the_network, name):
    options, part = OPTIONS[name]
    wrong = [[embedding(), {**POOLED, **options}]]
    told(calls_of_the_network, lambda: run(model, wrong, latent), part.format(name="positive"), "positive")
    told(calls_of_the_network, lambda: run(model, text(1), latent, negative=wrong), part.format(name="negative"))
    told(calls_of_the_network, lambda: steered(wrong), part.format(name="negative"), "negative")
    told(calls_of_the_network, lambda: steered(text(2) + wrong), part.format(name="negative"))


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_a_ksampler_accepts_gives_its_picture(pack, model, text, run, steered, latent, name):
    entries = ACCEPTED[name]()
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": entries})
    noise = comfy.sample.prepare_noise(latent["samples"], 5)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 1)
    with torch.inference_mode():
        stock = guider.sample(noise, latent["samples"], comfy.samplers.sampler_object("euler"), sigmas, seed=5)
    torch.testing.assert_close(run(model, ACCEPTED[name](), latent)["samples"], stock, rtol=1e-5, atol=1e-5)
    # As a negative: what it steers away from is the same text in fp32.
    plain = [[torch.as_tensor(entry[0]).float(), entry[1]] for entry in ACCEPTED[name]()]
    torch.manual_seed(0)
    result = steered(entries)
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result, steered([[text, entries[n][1]] for n, (text, _) in enumerate(plain)]))


@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_embeddings_are_read_as_dense(model, text, run, steered, latent, sparse):
    dense, entries = [[embedding(), {}]], [[sparse(embedding()), {}]]
    assert torch.equal(steered(entries), steered(dense))
    assert torch.equal(run(model, entries, latent)["samples"], run(model, dense, latent)["samples"])
