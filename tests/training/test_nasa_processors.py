"""NASA in diffusers' networks: the formula by hand, every cross-attention layer and no other, gradients, masks.

Narrow networks with random weights: they prove wiring and arithmetic, not quality.
"""

import logging
from contextlib import ExitStack

import peft
import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import nn

from training.errors import UserError
from training.networks.nasa import NASAAttention, add_nasa, nasa_arguments

BATCH, WIDTH = 2, 12


def unet():
    """Levels with cross-attention, with self-attention alone (which gets the arguments too), and with none."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def pixart():
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )


@pytest.fixture(params=[unet, pixart])
def network(request):
    torch.manual_seed(0)
    network = request.param().train()
    for name, weight in network.named_parameters():
        if weight.ndim > 1 and ".attn" in name:  # attention that looks at some tokens more than at others
            nn.init.normal_(weight, std=1.5 / weight.shape[1] ** 0.5)
    return network


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


POSITIVE, NEGATIVE = randn(BATCH, 7, WIDTH, seed=2), randn(1, 5, WIDTH, seed=3)
POSITIVE_MASK = torch.tensor([[1] * 4 + [0] * 3, [1] * 6 + [0]])


def call(network, rows=slice(None), mask=None, **steer):
    """One call of either network at two timesteps: [rows, 4 or 8, 8, 8]"""
    return network(
        randn(BATCH, 4, 8, 8)[rows],
        timestep=torch.tensor([600, 30])[rows],
        encoder_hidden_states=POSITIVE[rows],
        encoder_attention_mask=None if mask is None else mask[rows],
        added_cond_kwargs={},
        return_dict=False,
        **steer,
    )[0]


def reference(q, k, v, heads, mask=None):
    """softmax(QK^T / sqrt(d))V, head by head, then merged; mask [batch, tokens], 1 = the token counts."""
    merged = []
    for q_head, k_head, v_head in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True):
        scores = q_head @ k_head.transpose(1, 2) / q_head.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -torch.inf)
        merged.append(scores.softmax(-1) @ v_head)
    return torch.cat(merged, dim=-1)


def test_one_layer_by_hand():
    torch.manual_seed(0)
    attn = Attention(query_dim=6, cross_attention_dim=WIDTH, heads=2, dim_head=4, processor=NASAAttention())
    x, masks = randn(BATCH, 9, 6), (POSITIVE_MASK, torch.tensor([[1, 1, 0, 1, 0]]))
    q = attn.to_q(x)
    plus, minus = (
        reference(q, attn.to_k(text), attn.to_v(text), attn.heads, mask)
        for text, mask in zip((POSITIVE, NEGATIVE), masks, strict=True)
    )
    expected = attn.to_out[0](plus - torch.tensor([0.7, 0.2]).view(-1, 1, 1) * minus)
    steered = attn(
        x,
        encoder_hidden_states=POSITIVE,
        attention_mask=(1 - masks[0][:, None]) * -10000.0,
        **nasa_arguments(nn.Module(), NEGATIVE, torch.tensor([0.7, 0.2]), masks[1])["cross_attention_kwargs"],
    )
    torch.testing.assert_close(steered, expected)


def test_every_cross_attention_layer(network):
    """Against hooks on the raw layers of a network that knows nothing of NASA."""
    queries = {}

    def remember(module, _, q):
        queries[module] = q

    def steer(attn, negative):
        def before_output(_, args):
            z = reference(queries[attn.to_q], attn.to_k(negative), attn.to_v(negative), attn.heads)
            return (args[0] - 0.5 * z,)

        return before_output

    negative = NEGATIVE if isinstance(network, UNet2DConditionModel) else network.caption_projection(NEGATIVE)
    with ExitStack() as stack:
        for attn in [module for name, module in network.named_modules() if name.endswith(".attn2")]:
            stack.callback(attn.to_q.register_forward_hook(remember).remove)
            stack.callback(attn.to_out[0].register_forward_pre_hook(steer(attn, negative)).remove)
        expected = call(network)
    plain = call(network)
    add_nasa(network)
    steered = call(network, **nasa_arguments(network, NEGATIVE, 0.5))
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-5)
    assert (steered - plain).abs().max() > 0.05 * plain.abs().max()


@pytest.mark.parametrize("mask", [None, POSITIVE_MASK], ids=["no mask", "masked"])
def test_plain_calls_and_alpha_zero_are_bit_exact(network, mask):
    plain, names = call(network, mask=mask), list(network.state_dict())
    for _ in range(2):  # a second time changes nothing
        add_nasa(network)
    assert list(network.state_dict()) == names
    assert torch.equal(call(network, mask=mask), plain)
    for alpha in (0, 0.0, torch.zeros(BATCH)):
        assert torch.equal(call(network, mask=mask, **nasa_arguments(network, NEGATIVE, alpha)), plain)


def test_self_attention_says_nothing(network, caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    call(network, cross_attention_kwargs={"nasa_negative": NEGATIVE})
    assert "nasa_negative" in caplog.text  # diffusers' warning, were the processors not there
    caplog.clear()
    add_nasa(network)
    call(network, **nasa_arguments(network, NEGATIVE, 0.5, torch.ones(1, 5)))
    logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize("alpha", [0.5, torch.tensor([0.0, 0.8])], ids=["one alpha", "two alphas"])
def test_gradients_with_and_without_checkpointing(network, alpha):
    add_nasa(network)
    negative = NEGATIVE.clone().requires_grad_()
    projections = []
    attn = next(module for name, module in network.named_modules() if name.endswith(".attn2"))
    attn.to_k.register_forward_hook(lambda *_: projections.append(1))

    def gradients():
        projections.clear()
        call(network, **nasa_arguments(network, negative, alpha)).square().mean().backward()
        found = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
        found["negative"] = negative.grad
        network.zero_grad()
        negative.grad = None
        return found, len(projections)

    stored, calls = gradients()
    network.enable_gradient_checkpointing()
    recomputed, calls_again = gradients()
    assert (calls, calls_again) == (2, 4)  # positive and negative; and once more each in the backward pass
    assert stored.keys() == recomputed.keys()
    assert {name for name, _ in network.named_parameters()} < stored.keys()
    for name, gradient in stored.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    assert stored["negative"].abs().max() > 0


def test_gradient_is_the_derivative():
    """Of one layer, in the image, both texts and alpha, in double precision."""
    torch.manual_seed(0)
    attn = Attention(query_dim=4, cross_attention_dim=3, heads=2, dim_head=2, processor=NASAAttention()).double()

    def layer(x, positive, negative, alpha):
        steer = nasa_arguments(nn.Module(), negative, alpha, torch.tensor([[1, 0, 1]]))["cross_attention_kwargs"]
        return attn(x, encoder_hidden_states=positive, **steer)

    shapes = (2, 3, 4), (2, 2, 3), (1, 3, 3), (2,)
    assert torch.autograd.gradcheck(layer, [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes])


def test_a_mask_is_as_good_as_trimming(network):
    add_nasa(network)
    longer = torch.cat([NEGATIVE, 9 * randn(1, 3, WIDTH, seed=4)], dim=1)
    trimmed = call(network, **nasa_arguments(network, NEGATIVE, 0.5))
    masked = call(network, **nasa_arguments(network, longer, 0.5, torch.tensor([[1] * 5 + [0] * 3])))
    torch.testing.assert_close(masked, trimmed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(call(network, **nasa_arguments(network, longer, 0.5)), trimmed, rtol=1e-2, atol=1e-2)


def test_rows_are_their_own(network):
    """Each row with its own negative, its length and its alpha, as if it had been alone."""
    add_nasa(network)
    negatives, lengths = torch.cat([NEGATIVE, randn(1, 5, WIDTH, seed=5)]), torch.tensor([3, 5])
    alphas, mask = torch.tensor([0.9, 0.3]), torch.arange(5) < lengths[:, None]
    together = call(network, mask=POSITIVE_MASK, **nasa_arguments(network, negatives, alphas, mask))
    for row in range(BATCH):
        one = slice(row, row + 1)
        steer = nasa_arguments(network, negatives[one, : lengths[row]], alphas[row].item())
        alone = call(network, one, POSITIVE_MASK, **steer)
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


def test_one_negative_for_all_rows(network):
    add_nasa(network)
    shared = call(network, **nasa_arguments(network, NEGATIVE, 0.5))
    repeated = call(network, **nasa_arguments(network, NEGATIVE.repeat(BATCH, 1, 1), torch.full((BATCH,), 0.5)))
    torch.testing.assert_close(shared, repeated, rtol=1e-4, atol=1e-5)


def test_an_alpha_of_zero_leaves_its_row_alone(network):
    plain = call(network)
    add_nasa(network)
    steered = call(network, **nasa_arguments(network, NEGATIVE, torch.tensor([0.0, 1.0])))
    assert torch.equal(steered[0], plain[0]) and not torch.allclose(steered[1], plain[1], rtol=1e-2, atol=1e-2)


def test_mixed_precision(network):
    """alpha and the negative in fp32 under autocast: the layers stay in bf16, the result near that of fp32."""
    add_nasa(network)
    arguments = NEGATIVE, torch.tensor([0.5, 0.2]), torch.ones(1, 5)
    whole = call(network, **nasa_arguments(network, *arguments))
    kinds = set()
    for name, module in network.named_modules():
        if name.endswith(".attn2.to_out.0"):
            module.register_forward_pre_hook(lambda _, args: kinds.add(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = call(network, **nasa_arguments(network, *arguments))
    assert kinds == {torch.bfloat16}
    assert (half.float() - whole).abs().max() < 0.1 * whole.abs().max()


def test_inside_peft(network):
    """The adapter's weights learn through Z-, and what peft wraps is found."""
    add_nasa(network)
    expected = call(network, **nasa_arguments(network, NEGATIVE, 0.5))
    wrapped = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["to_k", "to_v"]))
    steered = call(wrapped, **nasa_arguments(wrapped, NEGATIVE, 0.5))
    assert torch.equal(steered, expected)
    steered.square().mean().backward()
    adapters = [w for name, w in wrapped.named_parameters() if "attn2" in name and "lora_B" in name]
    assert adapters and all(weight.grad.abs().max() > 0 for weight in adapters)


def test_another_attention_is_refused_by_name(network):
    network.set_attn_processor(AttnProcessor())
    with pytest.raises(UserError, match="this network has AttnProcessor: "):
        add_nasa(network)
