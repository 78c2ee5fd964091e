"""The drawn world, its captions and the detector that reads it: all on drawn ground truth, no model."""

import numpy as np
import pytest
import torch

from training.shapes import detector, latent_code, measurement, text, world


def test_detector_reads_drawn_ground_truth():
    assert detector.accuracy_on_drawn(1000, seed=1) >= 0.99


def test_detector_names_nothing_on_a_plain_picture():
    plain = np.full((1, 32, 32, 3), 128, np.uint8)
    assert detector.read(plain)[0] == detector.Reading(None, None, "gray", None)


def test_detector_names_no_color_between_two():
    brown = world.paint(world.ITEMS[0], color=(130, 100, 55))
    assert detector.read_one(brown).color is None


def test_detector_refuses_other_arrays():
    with pytest.raises(ValueError, match=r"uint8 \[N, 32, 32, 3\], not float64"):
        detector.read(np.zeros((1, 32, 32, 3)))


def test_every_caption_is_read_back():
    for caption in world.CAPTIONS:
        again = world.parse(caption.text())
        for name in (*world.ATTRIBUTES, "colored"):
            assert getattr(again, name) == getattr(caption, name), caption.text()


def test_what_counts_as_absent_and_kept():
    red_circle = detector.Reading("circle", "red", "white", "small")
    assert not measurement.absent(red_circle, "red")
    assert measurement.absent(red_circle, "blue")
    assert measurement.kept(red_circle, "a colored circle")
    assert not measurement.kept(red_circle, "a colored square")
    nothing = detector.Reading(None, None, "white", None)
    assert measurement.absent(nothing, "red") and not measurement.kept(nothing, "a shape")


def test_a_choice_fits_each_of_its_values():
    caption = world.parse("a red or blue circle")
    fitting = {(item.shape, item.color) for item in world.ITEMS if caption.fits(item)}
    assert fitting == {("circle", "red"), ("circle", "blue")}


def test_accuracy_captions_name_every_color_and_shape():
    captions = measurement.accuracy_captions(32)
    assert len(set(captions)) == 16
    assert all(world.parse(caption).color and world.parse(caption).shape for caption in captions)


def test_latent_code_favours_no_value():
    codes = latent_code.latents().flatten(1)
    assert torch.allclose(codes.square().sum(1), torch.full((len(codes),), 64.0), atol=1e-4)
    assert torch.cdist(codes, codes).add(torch.eye(len(codes)) * 99).min() > 4


def test_tokenizer_gives_clips_own_ids():
    ids = text.tokenizer()("a large red circle on a black background").input_ids
    assert ids == [49406, 320, 3638, 736, 7117, 525, 320, 1449, 5994, 49407]


def test_text_encoder_is_always_the_same_and_tells_words_apart():
    encoder = text.text_encoder()
    red, blue, again = text.encode(["a red circle", "a blue circle", "a red circle"], encoder)
    assert torch.equal(red, again)
    assert torch.allclose(red[:2], blue[:2], atol=1e-5), "words before the color do not know of it"
    assert torch.cosine_similarity(red[2], blue[2], dim=0) < 0.5
    # Read off when the demo's weights were trained; another stream would make them worthless.
    assert red[2, :4].tolist() == pytest.approx([-0.3541, -0.6241, 0.6760, -0.6381], abs=1e-3)
