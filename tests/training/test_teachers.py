"""One network for both teachers: the traps of switching the adapter."""

import copy

import pytest
import torch

from training.errors import UserError
from training.method.guidance import guided
from training.method.losses import lora_loss
from training.networks.adapter import halve_frozen_weights
from training.networks.backbones.stable_diffusion import StableDiffusion
from training.networks.teachers import Teachers
from training.recipe.config import Lora


@pytest.fixture
def backbone(teacher):
    return StableDiffusion(str(teacher))


@pytest.fixture
def batch(backbone):
    random = torch.Generator().manual_seed(1)
    x_t = torch.randn((2, *backbone.latent_shape()), generator=random)
    return x_t, torch.tensor([5, 900]), backbone.encode(["red", "a circle"])


@pytest.mark.parametrize("targets", [["to_q", "to_v"], "all-linear-and-conv"])
def test_lora_learns_and_the_teacher_stays(backbone, batch, targets):
    plain = copy.deepcopy(backbone.network)
    expected = backbone.predict(plain, *batch)
    teachers = Teachers(backbone.network, Lora(rank=2, alpha=4, targets=targets), backbone.predict)
    optimizer = torch.optim.AdamW(teachers.parameters(), lr=1e-2)
    for _ in range(2):  # the second step reaches lora_A too, which starts behind a zero lora_B
        losses = lora_loss(teachers.lora_in_training(*batch), torch.zeros_like(batch[0]), torch.ones(()))
        losses.mean().backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in teachers.parameters())
        optimizer.step()
    assert all(weight.grad.any() for weight in teachers.parameters())
    assert torch.equal(teachers.frozen(*batch), expected)
    assert not torch.equal(teachers.lora(*batch), expected)
    assert torch.equal(teachers.lora(*batch), teachers.lora_in_training(*batch).detach())


def test_asking_the_frozen_teacher_before_backward_would_not_cost_the_gradient(backbone, batch):
    """The trap itself: adapter off between forward and backward. Ours is off only inside `frozen`."""
    teachers = Teachers(backbone.network, Lora(rank=2, alpha=2), backbone.predict)
    loss = teachers.lora_in_training(*batch).square().mean()
    frozen = teachers.frozen(*batch)
    assert not frozen.requires_grad
    loss.backward()
    assert any(weight.grad.any() for weight in teachers.parameters())


def test_adapter_is_fp32_over_a_bf16_network(backbone):
    halve_frozen_weights(backbone.network)
    teachers = Teachers(backbone.network, Lora(rank=2, alpha=2), backbone.predict)
    assert {weight.dtype for weight in teachers.parameters()} == {torch.float32}
    trainable = {name for name, weight in teachers.network.named_parameters() if weight.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)


def test_unknown_target_is_a_sentence(backbone):
    with pytest.raises(UserError, match="no layer ends in `to_w`; this network has .*to_q"):
        Teachers(backbone.network, Lora(targets=["to_w"]), backbone.predict)


def test_guidance_in_one_call_is_guidance_in_two(backbone, batch):
    x_t, t, text = batch
    null = backbone.encode([""]).repeat(len(text))

    def predict(*arguments):
        return backbone.predict(backbone.network, *arguments)

    with torch.no_grad():
        expected = predict(x_t, t, null) + 3.5 * (predict(x_t, t, text) - predict(x_t, t, null))
        torch.testing.assert_close(guided(predict, x_t, t, text, null, 3.5), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", ["unit", "vp"])
def test_x0_is_fp32_and_undoes_the_noise(backbone, batch, noise):
    """A network that answers the true eps in bf16 must give back x0 as exactly as that rounding allows, in fp32."""
    x0, z = batch[0], torch.randn_like(batch[0])
    t = torch.full((2,), 625)
    x = backbone.add_noise(x0, z, t)
    alpha, sigma = backbone.coefficients(t)
    fed = x if noise == "unit" else x / sigma

    def network(seen, t, encoder_hidden_states, return_dict):
        torch.testing.assert_close(seen, x)
        return (z.bfloat16(),)

    result = backbone.one_step(network, fed, batch[2], 625, noise)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, (x - sigma * z.bfloat16().float()) / alpha, rtol=1e-5, atol=1e-5)
