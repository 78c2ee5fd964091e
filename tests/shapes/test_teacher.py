"""The exact denoiser of the drawn world, against what it is by definition."""

import torch

from training.shapes import teacher, world


def test_denoiser_returns_the_picture_when_there_is_hardly_any_noise():
    drawn = teacher.World()
    alpha, sigma = torch.full((480,), 0.999), torch.full((480,), 0.045)
    noisy = 0.999 * drawn.latents + 0.045 * torch.randn(480, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    x0 = drawn.denoise(noisy, alpha, sigma, torch.zeros(480, dtype=torch.long))
    assert (x0 - drawn.latents).abs().max() < 1e-3


def test_denoiser_returns_the_mean_of_what_fits_when_there_is_only_noise():
    drawn = teacher.World()
    index = next(n for n, caption in enumerate(world.CAPTIONS) if caption.text() == "a red circle")
    noisy = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    x0 = drawn.denoise(noisy, torch.tensor([1e-4]), torch.tensor([1.0]), torch.tensor([index]))
    fitting = [n for n, item in enumerate(world.ITEMS) if (item.shape, item.color) == ("circle", "red")]
    assert torch.allclose(x0[0], drawn.latents[fitting].mean(0), atol=1e-2)


def test_denoiser_minimises_the_squared_error():
    """E[x0 | x_t] beats the same denoiser with any other noise level in its hands."""
    drawn, generator = teacher.World(), torch.Generator().manual_seed(0)
    items, captions = torch.randint(480, (4000,), generator=generator), torch.zeros(4000, dtype=torch.long)
    alpha, sigma = torch.full((4000,), 0.37), torch.full((4000,), 0.93)
    clean = drawn.latents[items]
    noisy = 0.37 * clean + 0.93 * torch.randn(clean.shape, generator=generator)
    errors = [
        float((drawn.denoise(noisy, alpha, sigma * factor, captions) - clean).square().mean())
        for factor in (0.8, 1.0, 1.25)
    ]
    assert errors[1] < min(errors[0], errors[2])


def test_every_drawn_caption_fits_its_picture():
    import numpy

    drawn = teacher.World()
    items, captions = drawn.draw(numpy.random.RandomState(0), teacher.TeacherSettings(batch=512))
    assert all(world.CAPTIONS[c].fits(world.ITEMS[i]) for i, c in zip(items.tolist(), captions.tolist(), strict=True))
    assert 0.05 < float((captions == 0).float().mean()) < 0.16


def test_student_and_teacher_have_the_size_that_comfyui_recognises():
    network = teacher.untrained()
    assert network.config.block_out_channels == (320,) and network.config.cross_attention_dim == 768
    assert 25e6 < sum(weight.numel() for weight in network.parameters()) < 26e6
