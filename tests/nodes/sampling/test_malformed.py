"""Malformed conditionings, latents, models, numbers: one sentence before any sampling, or the picture of a KSampler."""

import math

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
       for name in ("start_percent", "end_percent", "strength", "mask_strength")
       for value in (None, NAN, "0.5", [0.5])},
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


#: What ComfyUI finds only when it prepares the positive for the model; of a negative they are left out.
UNREADABLE = {
    "control None": {"control": None},
    "control text": {"control": "canny"},
    "hooks None": {"hooks": None},
    "hooks a list": {"hooks": [1]},
    "gligen None": {"gligen": None},
    "model_conds None": {"model_conds": None},
    "keys that are no text": {3: None},
    "a start without its end": {"clip_start_percent": 0.0},
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_options_that_comfyui_cannot_read(model, text, run, steered, latent, calls_of_the_network, name):
    wrong = [[embedding(), UNREADABLE[name]]]
    said = "lacks clip_end_percent" if name == "a start without its end" else "cannot be read by"
    told(calls_of_the_network, lambda: run(model, wrong, latent), f"The positive conditioning {said}", "CLIP")
    if UNREADABLE[name].keys() & {"control", "hooks", "gligen"}:
        assert torch.equal(steered(wrong), steered([[embedding(), {}]]))
    else:
        told(calls_of_the_network, lambda: steered(wrong), f"The negative conditioning {said}")


@pytest.mark.parametrize(
    "options", [{}, {"pooled_output": None}, {"pooled_output": "a cat"}, {"pooled_output": ones(8)}]
)
def test_sdxl_without_its_pooled_embedding(pack, models, run, options):
    """It reads one of 1280 beside the text."""
    model, good = models["SDXL"], [[embedding(1, 77, 40), {"pooled_output": ones(1, 1280)}]]
    wrong, latent = [[embedding(1, 77, 40), options]], {"samples": torch.zeros(1, 4, 8, 8)}
    said = "lacks pooled_output, which this model reads" if not options else "cannot be read by this model"
    told([], lambda: run(model, wrong, latent), f"The positive conditioning {said}")
    told([], lambda: run(model, good, latent, negative=wrong), f"The negative conditioning {said}")
    assert torch.isfinite(run(model, good, latent, negative=good)["samples"]).all()


def test_out_of_memory_stays_what_it_is(pack, model, text, run, latent, monkeypatch):
    """ComfyUI frees its models then, and says so itself."""
    import comfy.model_management

    def full(*_, **__):
        raise comfy.model_management.OOM_EXCEPTION("full")

    monkeypatch.setattr(comfy.samplers, "process_conds", full)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        run(model, text(1), latent)


def test_an_error_of_the_network_stays_what_it_is(model, text, run, latent):
    class Broken(Exception):
        pass

    def broken(apply_model, args):
        raise KeyError("theirs")

    patched = model.clone()
    patched.set_model_unet_function_wrapper(broken)
    with pytest.raises(KeyError, match="theirs"):
        run(patched, text(1), latent)


def samples(*shape):
    return {"samples": torch.zeros(shape or (3, 4, 8, 8))}


#: LATENTs for SD 1.5, and what the sentence says.
LATENTS = {
    "None": (None, "The latent_image is empty: connect an Empty Latent Image"),
    "a tensor": (torch.zeros(1, 4, 8, 8), "The latent_image is no latent but of type Tensor: connect"),
    "a list": ([samples()], "The latent_image is no latent but of type list: connect"),
    "text": ("latent", "The latent_image is no latent but of type str: connect"),
    "nothing in it": ({}, "The latent_image is without samples: connect"),
    "samples None": ({"samples": None}, "The latent_image is without samples: connect"),
    "samples a list": ({"samples": [[0.0]]}, "The latent_image is without samples: connect"),
    "samples of numpy": ({"samples": numpy.zeros((1, 4, 8, 8))}, "The latent_image is without samples: connect"),
    "no pictures": (samples(0, 4, 8, 8), "of size 0 x 4 x 8 x 8: connect an Empty Latent Image"),
    "no channels": (samples(1, 0, 8, 8), "of size 1 x 0 x 8 x 8: connect"),
    "no height": (samples(1, 4, 0, 8), "of size 1 x 4 x 0 x 8: connect"),
    "no width": (samples(1, 4, 8, 0), "of size 1 x 4 x 8 x 0: connect"),
    "1 dimension": (samples(4), "of size 4: connect"),
    "3 dimensions": (samples(4, 8, 8), "of size 4 x 8 x 8: connect"),
    "5 dimensions": (samples(1, 4, 1, 8, 8), "of size 1 x 4 x 1 x 8 x 8, but this model makes pictures: connect"),
    "5 dimensions with a picture": ({"samples": ones(1, 4, 2, 8, 8)}, "but this model makes pictures: connect"),
    "6 dimensions": (samples(1, 4, 1, 1, 8, 8), "of size 1 x 4 x 1 x 1 x 8 x 8, but this model"),
    "16 channels": ({"samples": ones(1, 16, 8, 8)}, "has 16 channels, but this model works with 4: encode the picture"),
    "3 channels": ({"samples": ones(1, 3, 64, 64)}, "has 3 channels, but this model works with 4: encode"),
    "1 channel": ({"samples": ones(1, 1, 8, 8)}, "has 1 channels, but this model works with 4: encode"),
    "NaN": ({"samples": with_nan(ones(1, 4, 8, 8))}, "The latent_image holds NaN or infinite numbers: make it again"),
    "infinite": ({"samples": with_nan(ones(1, 4, 8, 8), INF)}, "The latent_image holds NaN or infinite numbers"),
    "NaN in fp16": ({"samples": with_nan(ones(1, 4, 8, 8)).half()}, "The latent_image holds NaN or infinite numbers"),
    "NaN in fp8": ({"samples": with_nan(ones(1, 4, 8, 8)).to(torch.float8_e5m2)}, "holds NaN or infinite numbers"),
    "complex": ({"samples": ones(1, 4, 8, 8) + 0j}, "The latent_image holds no real numbers: connect"),
    "meta": ({"samples": ones(1, 4, 8, 8).to("meta")}, "The latent_image holds no real numbers: connect"),
    **{f"batch_index {index!r:.40}": ({**samples(), "batch_index": index}, "which does not number its 3 pictures: use")
       for index in ([0], [0, 1], [0, 1, 2, 3], [], [0, -1, 1], [0, 0.5, 1], ["0", "1", "2"], [None] * 3, 3, "012",
                     [0, NAN, 1], [[0], [1], [2]], [0, 1, 10**9], [0, 1, 2**70], torch.zeros(3), Anything(), {})},
    "batch_index of a batch of one": ({**samples(1, 4, 8, 8), "batch_index": [-1]}, "does not number its 1 pictures"),
    **{f"{name} {value!r}": ({**samples(), name: value}, f"has {value!r} as its {name}: connect")
       for name in ("downscale_ratio_spacial", "downscale_ratio_temporal") for value in (0, -8, NAN, INF, "8", [8])},
    "mask a list": ({**samples(), "noise_mask": [[1.0]]}, "The noise mask of latent_image is no picture (list): use"),
    "mask of numpy": ({**samples(), "noise_mask": numpy.ones((1, 8, 8))}, "is no picture (ndarray): use"),
    "mask of 1 dimension": ({**samples(), "noise_mask": ones(8)}, "is no picture (8): use Set Latent Noise Mask"),
    "mask of nothing": ({**samples(), "noise_mask": ones(0, 8, 8)}, "is no picture (0 x 8 x 8): use"),
    "mask NaN": ({**samples(), "noise_mask": with_nan(ones(1, 8, 8))}, "noise mask of latent_image holds NaN or inf"),
    "mask infinite": ({**samples(), "noise_mask": with_nan(ones(1, 8, 8), -INF)}, "mask of latent_image holds NaN or"),
    "mask complex": ({**samples(), "noise_mask": ones(1, 8, 8) + 0j}, "noise mask of latent_image holds no real numb"),
}  # fmt: skip

#: LATENTs that give the picture of a plain one, or that of a KSampler.
USABLE = {
    "empty of 16 channels": samples(3, 16, 8, 8),
    "empty of 1 channel": samples(3, 1, 8, 8),
    "int64": {"samples": torch.zeros(3, 4, 8, 8, dtype=torch.int64)},
    "uint8": {"samples": torch.zeros(3, 4, 8, 8, dtype=torch.uint8)},
    "bool": {"samples": torch.zeros(3, 4, 8, 8, dtype=torch.bool)},
    "fp8": {"samples": torch.zeros(3, 4, 8, 8).to(torch.float8_e4m3fn)},
    "sparse": {"samples": torch.zeros(3, 4, 8, 8).to_sparse()},
    "mask None": {**samples(), "noise_mask": None},
    "batch_index None": {**samples(), "batch_index": None},
    "batch_index in order": {**samples(), "batch_index": [0, 1, 2]},
    "batch_index a tuple": {**samples(), "batch_index": (0, 1, 2)},
    "batch_index of numpy": {**samples(), "batch_index": numpy.arange(3)},
    "batch_index a tensor": {**samples(), "batch_index": torch.arange(3)},
    "downscale_ratio_spacial": {**samples(), "downscale_ratio_spacial": 8},
    "downscale_ratio_spacial None": {**samples(), "downscale_ratio_spacial": None},
    "mask of ones": {**samples(), "noise_mask": ones(1, 1, 8, 8)},
    "mask of ones in bools": {**samples(), "noise_mask": ones(1, 64, 64) > 0},
    "mask of ones in integers": {**samples(), "noise_mask": ones(64, 64).long()},
    "mask of ones for each": {**samples(), "noise_mask": ones(3, 8, 8)},
    "mask of ones for some": {**samples(), "noise_mask": ones(2, 1, 9, 9)},
    "mask of ones in 5 dimensions": {**samples(), "noise_mask": ones(1, 1, 1, 8, 8)},
    "mask of ones, sparse": {**samples(), "noise_mask": ones(1, 1, 8, 8).to_sparse()},
}


@pytest.mark.parametrize("name", LATENTS)
def test_latents_that_cannot_be_sampled(model, text, run, calls_of_the_network, name):
    wrong, part = LATENTS[name]
    told(calls_of_the_network, lambda: run(model, text(1), wrong), part)


@pytest.mark.parametrize("name", USABLE)
def test_latents_of_other_kinds_give_the_same_picture(model, text, run, name):
    before = dict(USABLE[name])
    plain = run(model, text(1), samples())["samples"]
    torch.testing.assert_close(run(model, text(1), USABLE[name])["samples"], plain, rtol=1e-5, atol=1e-5)
    assert USABLE[name].keys() == before.keys() and all(USABLE[name][key] is before[key] for key in before)


@pytest.mark.parametrize("latent", [
    {"samples": torch.zeros(2, 4, 8, 8), "batch_index": [3, 3]},
    {"samples": torch.full((1, 4, 8, 8), 0.5), "batch_index": [3, 5]},
    {"samples": torch.full((1, 4, 8, 8), 0.5).double()},
    {"samples": torch.full((1, 4, 8, 8), 0.5).bfloat16(), "noise_mask": drawn(1, 1, 8, 8)},
    {"samples": torch.zeros(1, 4, 3, 13)},
    {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_temporal": 4},  # newer cores make it higher
])  # fmt: skip
def test_latents_that_a_ksampler_accepts(model, text, run, latent):
    import nodes

    with torch.inference_mode():
        (stock,) = nodes.common_ksampler(model, 5, 1, 1.0, "euler", "simple", text(1), text(1), latent)
    out = run(model, text(1), latent)["samples"]
    torch.testing.assert_close(out, stock["samples"].to(out.dtype), rtol=1e-6, atol=1e-6)


def test_a_latent_in_fp16_is_finite(model, text, run):
    """Where a KSampler of an older core gives NaN; the noise is that of a KSampler."""
    image = torch.full((1, 4, 8, 8), 0.5).half()
    noise = comfy.sample.prepare_noise(image, 5)
    out = run(model, text(1), {"samples": image})["samples"]
    assert torch.isfinite(out).all() and out.dtype == torch.float32 and noise.dtype == torch.float16


def test_a_latent_of_another_scale_on_any_core(narrow_model, run):
    """Newer Empty Latent Images say how large a picture is for them; older cores have no such argument."""
    model = narrow_model("FLUX.1")
    text = [[torch.randn(1, 9, 32), {"pooled_output": torch.randn(1, 32)}]]
    latent = {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}
    out = run(model, text, latent, preset="flux-schnell")
    assert out["samples"].shape == (1, 16, 8, 8) and "downscale_ratio_spacial" not in out


def nodes_of(pack):
    import asyncio

    listed = asyncio.run(asyncio.run(pack.root.comfy_entrypoint()).get_node_list())
    return {node.GET_SCHEMA().node_id: node for node in listed}


@pytest.mark.parametrize("wrong, part", [(None, "is empty"), ("model.safetensors", "type str"), ({}, "type dict"),
                                         (torch.zeros(1), "type Tensor")])  # fmt: skip
@pytest.mark.parametrize("node, inputs", [
    ("NASACrossAttentionPatch", {"negative": [], "alpha": 0.5, "start_percent": 0.0, "end_percent": 1.0}),
    ("SNOOPIOneStepSampler", {"positive": [], "latent_image": {}, "seed": 1, "preset": "auto"}),
    ("SNOOPIModelSampling", {"preset": "auto"}),
    ("SNOOPIOneStepScheduler", {"preset": "auto"}),
])  # fmt: skip
def test_a_model_that_is_none(pack, node, inputs, wrong, part):
    execute = nodes_of(pack)[node].execute
    told([], lambda: execute(model=wrong, **inputs), "The input model is ", part, ": connect a node that loads a model")


@pytest.mark.parametrize("wrong", [None, "0.5", [0.5], {}, Anything(), "\ud800" * 10_000])
@pytest.mark.parametrize("name", ["alpha", "start_percent", "end_percent", "norm_limit", "seed", "denoise"])
def test_numbers_that_are_none(pack, model, text, latent, calls_of_the_network, name, wrong):
    nasa = {"model": model, "negative": text(2), "alpha": 0.5, "start_percent": 0.0, "end_percent": 1.0}
    sampler = {"model": model, "positive": text(1), "latent_image": latent, "seed": 1, "preset": "sd"}
    if name in ("alpha", "seed", "denoise"):
        execute = pack.one_step_sampler.SNOOPIOneStepSampler.execute
        told(calls_of_the_network, lambda: execute(**sampler | {name: wrong}), f"{name} is ", "give it a number")
    if name not in ("seed", "denoise"):
        execute = pack.nasa_patch.NASACrossAttentionPatch.execute
        told(calls_of_the_network, lambda: execute(**nasa | {name: wrong}), f"{name} is ", "give it a number")


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70, 0.5, NAN, INF])
def test_a_seed_that_is_none(model, text, run, latent, calls_of_the_network, seed):
    told(calls_of_the_network, lambda: run(model, text(1), latent, seed=seed), f"seed is {seed}: give a whole number")
