"""The teacher: its size, its text, its lesson."""

import dataclasses

import pytest
import torch
from diffusers import SD3Transformer2DModel

from training.errors import UserError
from training.portraits import latent_code, teacher


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return teacher.untrained(teacher.TEXT_WIDTH)


def inputs(tokens=77):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 8, 8, generator=random)
    return x, torch.tensor([0.72, 0.3]), torch.randn(2, tokens, teacher.TEXT_WIDTH, generator=random)


def stirred(network):
    """The same network with modulations that are not those of the start."""
    torch.manual_seed(2)
    for block in network.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.normal_(norm.linear.weight, std=0.02)
    return network


def test_the_network_has_the_size_that_comfyui_takes(network):
    config = network.config
    assert config.num_attention_heads == config.num_layers == 5 and config.attention_head_dim == 64
    assert teacher.untrained().config.joint_attention_dim == 4096 and config.qk_norm == "rms_norm"
    assert 18e6 < sum(weight.numel() for weight in network.parameters()) < 19e6


@torch.no_grad()
def test_the_widened_network_says_the_same(network):
    x, t, text = inputs()
    wide = torch.nn.functional.pad(text, (0, teacher.SD3_TEXT_WIDTH - teacher.TEXT_WIDTH))
    narrow = teacher.predict(stirred(network), x, t, text)
    assert torch.allclose(teacher.predict(teacher.widened(network), x, t, wide), narrow, atol=1e-5)


@torch.no_grad()
def test_the_pooled_vector_has_no_say(network):
    x, t, text = inputs()
    with_pooled = network(x, text, torch.randn(2, teacher.POOLED_WIDTH), t * 1000).sample
    assert torch.equal(with_pooled, network(x, text, torch.zeros(2, teacher.POOLED_WIDTH), t * 1000).sample)


@torch.no_grad()
def test_few_tokens_stand_for_all_where_the_last_ones_are_alike(network):
    x, t, text = inputs()
    text[:, teacher.WORDS :] = text[:, -1:]
    whole = teacher.predict(stirred(network), x, t, text)
    processors = network.attn_processors
    network.set_attn_processor(teacher.FewerTokens(16, 77))
    assert torch.allclose(teacher.predict(network, x, t, text), whole, atol=1e-5)
    network.set_attn_processor(teacher.FewerTokens(16, 24))
    assert torch.allclose(teacher.predict(network, x, t, text[:, :24]), whole, atol=1e-5)
    few = teacher.FewerTokens(16, 24)
    few.bias.zero_()
    network.set_attn_processor(few)
    assert not torch.allclose(teacher.predict(network, x, t, text[:, :24]), whole, atol=1e-3)
    network.set_attn_processor(processors)


def test_a_training_goes_on_bit_for_bit_and_refuses_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "ASKED", ("with glasses",))
    encoded = {}
    monkeypatch.setattr(
        teacher,
        "encode",
        lambda names, tokens: encoded.setdefault(
            len(names), torch.randn(len(names), tokens, 768, generator=torch.Generator().manual_seed(3))
        ),
    )
    monkeypatch.setattr(teacher, "DEPTH", 1)
    settings = dataclasses.replace(teacher.SETTINGS, steps=4, batch=4, captions=20, warm_up=1, checkpoint_every=2)
    whole = teacher.train(tmp_path / "whole", settings)

    class Stopped(Exception):
        pass

    loss = teacher.Portraits.loss

    def stops(self, network, step):
        if step == 3:
            raise Stopped
        return loss(self, network, step)

    monkeypatch.setattr(teacher.Portraits, "loss", stops)
    with pytest.raises(Stopped):
        teacher.train(tmp_path / "parts", settings)
    monkeypatch.setattr(teacher.Portraits, "loss", loss)
    with pytest.raises(UserError, match="belongs to other settings"):
        teacher.train(tmp_path / "parts", dataclasses.replace(settings, seed=5))
    again = teacher.train(tmp_path / "parts", settings)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    loaded = teacher.train(tmp_path / "whole", settings)
    assert isinstance(loaded, SD3Transformer2DModel) and not loaded.training


def test_the_lesson_is_the_exact_denoiser(monkeypatch):
    """A network that is the denoiser of each caption has no loss."""
    monkeypatch.setattr(teacher, "encode", lambda names, tokens: torch.arange(float(len(names)))[:, None, None])
    lesson = teacher.Portraits(dataclasses.replace(teacher.SETTINGS, batch=32, captions=50, bf16=False))

    def exact(x, text, pooled, timestep, return_dict):
        chosen = text.flatten().long()
        possible = {name: values[chosen] for name, values in lesson.possible.items()}
        t = timestep / 1000
        return ((x - latent_code.denoise(x, t, possible)) / t[:, None, None, None],)

    assert lesson.loss(exact, 0) < 1e-6
    assert lesson.loss(lambda x, *_, **__: (x,), 0) > 0.1
