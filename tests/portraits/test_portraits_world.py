"""The portraits, their captions, latents and drawings: all by definition, no model."""

import numpy as np
import torch

from training.portraits import drawing, latent_code, measurement, world
from training.shapes.text import tokenizer


def drawn(count, seed=0):
    random = np.random.RandomState(seed)
    items = world.draw_items(random, count)
    return items, [world.draw_caption(random, item) for item in items]


def test_every_drawn_caption_fits_its_portrait():
    items, captions = drawn(3000)
    assert all(world.fits(caption, item) for caption, item in zip(captions, items, strict=True))
    shares = world.SHARES
    assert abs(captions.count("") / 3000 - shares.empty) < 0.02
    assert abs(sum(bool(caption) and not caption.startswith("a ") for caption in captions) / 3000 - shares.bare) < 0.03


def test_captions_have_the_words_of_the_tokenizer_and_at_most_twenty_tokens():
    _, captions = drawn(3000, seed=1)
    words = tokenizer()
    assert max(len(ids) for ids in words(captions).input_ids) <= 20
    for word in sorted({word for caption in captions for word in caption.split()}):
        assert words.unk_token_id not in words(word).input_ids[1:-1], word
        assert len(words(word).input_ids) <= (4 if word == "whiskers" else 3), word


def test_what_a_caption_leaves_possible():
    allowed = world.allowed
    assert allowed("a person") == {"who": ("man", "woman")}
    assert allowed("a pet with no hat") == {"who": ("cat", "dog"), "hat": ("without",)}
    assert allowed("a man or cat") == {"who": ("man", "cat")}
    assert allowed("beard") == {"who": ("man",), "detail": ("with",)}
    assert allowed("a person with a beard")["who"] == ("man", "woman")
    assert allowed("black fur") == {"who": ("cat", "dog"), "hair": ("black",)}
    assert allowed("a sad woman with black or red hair on a blue background") == {
        "who": ("woman",),
        "mood": ("sad",),
        "hair": ("black", "red"),
        "background": ("blue",),
    }
    assert allowed("") == {} == allowed("nothing of this world")


def test_what_counts_as_absent_and_kept():
    reading = {name: "without" for name in ("glasses", "hat", "detail")} | {"who": "man", "mood": None}
    assert measurement.absent(reading, "woman") and not measurement.absent(reading, "man")
    assert measurement.absent(reading, "glasses") and measurement.absent(reading, "beard")
    assert not measurement.absent(reading, "sad"), "what is not clear is not absent"
    assert measurement.kept(reading, "a person") and not measurement.kept(reading, "a pet")
    assert not measurement.kept(reading | {"who": None}, "")


def test_the_pairs_leave_open_what_their_negative_names_and_the_irrelevant_ones_do_not():
    for pair, relevant in [(pair, True) for pair in measurement.PAIRS] + [(p, False) for p in measurement.IRRELEVANT]:
        asked, unwanted = world.allowed(pair.prompt), world.allowed(pair.negative)
        both = {n: set(asked.get(n, v)) & set(unwanted.get(n, v)) for n, v in world.ATTRIBUTES.items()}
        assert all(both.values()) == relevant, pair
        assert relevant <= any(
            set(asked.get(name, v)) - set(unwanted.get(name, v)) for name, v in world.ATTRIBUTES.items()
        )


def test_latents_are_of_unit_variance_and_read_back():
    items, _ = drawn(200)
    latents = latent_code.latents(latent_code.indices(items))
    assert torch.allclose(latents.square().mean((1, 2, 3)), torch.ones(200), atol=1e-5)
    assert latent_code.read(latents)[0] == items
    assert latent_code.distance(latents).max() < 1e-5
    patterns = torch.cat(list(latent_code.PATTERNS.values()))
    assert torch.allclose(patterns @ patterns.T, torch.eye(len(patterns)), atol=1e-5)


def test_the_denoiser_is_the_mean_of_the_posterior_over_all_portraits():
    """Against a softmax over every portrait that fits, at a noise level where several are likely."""
    from itertools import product

    every = [dict(zip(world.ATTRIBUTES, values, strict=True)) for values in product(*world.ATTRIBUTES.values())]
    codes = latent_code.latents(latent_code.indices(every)).flatten(1)
    random = torch.Generator().manual_seed(0)
    for caption, t in (("a sad pet with glasses", 0.9), ("", 0.97), ("a man or dog with no hat", 0.85)):
        fitting = codes[[world.fits(caption, item) for item in every]]
        clean = fitting[torch.randint(len(fitting), (1,), generator=random)]
        x = (1 - t) * clean + t * torch.randn(clean.shape, generator=random)
        logits = ((1 - t) * x @ fitting.T - (1 - t) ** 2 * fitting.square().sum(1) / 2) / t**2
        wanted = logits.softmax(1) @ fitting
        possible = latent_code.allowed_values([world.allowed(caption)])
        found = latent_code.denoise(x.view(1, 16, 8, 8), torch.tensor([t]), possible).flatten(1)
        assert logits.softmax(1).max() < 0.9, "a trivial posterior proves nothing"
        assert (found - wanted).abs().max() < 1e-4


def test_every_attribute_changes_the_drawing():
    (item,), _ = drawn(1, seed=4)
    for name, values in world.ATTRIBUTES.items():
        pictures = [drawing.paint(item | {name: value}).astype(int) for value in values]
        for index, picture in enumerate(pictures):
            for other in pictures[:index]:
                assert (abs(picture - other).max(-1) > 40).sum() >= 15, name
