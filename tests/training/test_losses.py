"""The losses against their equations, and CLIP's gradient through the decoder."""

import pytest
import torch

from training.errors import UserError
from training.method.clip import ClipEmbeddings
from training.method.losses import clamped_clip_loss, falling_weight, lora_loss, vsd_loss
from training.networks.backbones import load_backbone
from training.recipe.config import Clip


def test_vsd_gradient_is_the_weighted_score_difference():
    x0, teacher, lora = (torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(n)) for n in range(3))
    x0.requires_grad_()
    weight = torch.tensor([0.1, 0.5, 2.0]).view(3, 1, 1, 1)
    losses = vsd_loss(x0, teacher, lora, weight)
    assert losses.shape == (3,)
    losses.mean().backward()
    torch.testing.assert_close(x0.grad, weight * (teacher - lora) / x0.numel(), rtol=1e-4, atol=1e-7)


def test_lora_loss_is_the_weighted_mean_square_of_each_sample():
    eps, noise = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]])
    losses = lora_loss(eps, noise, torch.tensor([1.0, 10.0]).view(2, 1, 1, 1))
    assert losses.tolist() == [(1 + 9) / 2, (40 + 0) / 2]


def test_clip_loss_is_zero_beyond_the_margin_and_pulls_below_it():
    image = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -1.0]], requires_grad=True)
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # cosines 1, .8, -1
    losses = clamped_clip_loss(image, text, 0.9)
    assert losses.tolist() == pytest.approx([0, 0.1, 1.9])
    losses.sum().backward()
    assert not image.grad[0].any() and image.grad[1].any()


def test_the_clip_weight_falls_by_0014_to_the_t_over_steps():
    default = Clip()
    found = [falling_weight(default.weight, default.final_weight, step, 40_000) for step in (0, 1, 20_000, 40_000)]
    assert found == pytest.approx([0.1, 0.1 * 0.0014 ** (1 / 40_000), 0.1 * 0.0014**0.5, 0.1 * 0.0014])
    assert falling_weight(0.1, 0.1, 3, 5) == pytest.approx(0.1)


def test_the_clip_weight_falls_linearly_to_nothing():
    assert [falling_weight(0.1, 0.0, step, 5) for step in range(6)] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0, 0])
    assert falling_weight(0.1, 0.0, 0, 1) == 0.1


def test_clip_sees_pictures_clamped_to_0_1(teacher, clip):
    """What is brighter than white looks white to CLIP, and is not pulled."""
    backbone = load_backbone("stable_diffusion", str(teacher))
    embeddings = ClipEmbeddings(Clip(model=str(clip), decoder=None), backbone)
    last = embeddings.decoder.decoder.layers[-1]
    seen = []
    for bias in (0.0, 5.0, 9.0):
        torch.nn.init.constant_(last.bias, bias)
        latents = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(0)).requires_grad_()
        image, text = embeddings(latents, ["red"])
        clamped_clip_loss(image, text, margin=1.0).sum().backward()
        seen.append((image, latents.grad.any()))
    (_, pulled), (white, beyond), (whiter, far_beyond) = seen
    assert pulled and not beyond and not far_beyond
    assert torch.equal(white, whiter)


def test_latents_follow_clip_through_the_decoder(teacher, clip):
    backbone = load_backbone("stable_diffusion", str(teacher))
    embeddings = ClipEmbeddings(Clip(model=str(clip), decoder=str(teacher / "vae")), backbone)
    latents = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer, losses = torch.optim.Adam([latents], lr=0.5), []
    for _ in range(8):
        loss = clamped_clip_loss(*embeddings(latents, ["red", "a circle"]), margin=1.0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(weight.grad is None for weight in embeddings.model.parameters())


def test_a_clip_that_is_not_there_is_a_sentence(teacher, clip, tmp_path):
    backbone = load_backbone("stable_diffusion", str(teacher))
    with pytest.raises(UserError, match="Cannot load clip.model"):
        ClipEmbeddings(Clip(model=str(tmp_path), decoder=None), backbone)
    with pytest.raises(UserError, match="Cannot load clip.decoder"):
        ClipEmbeddings(Clip(model=str(clip), decoder=str(tmp_path)), backbone)
