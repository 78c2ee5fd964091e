"""NASA, Negative-Away Steer Attention (SNOOPI, arXiv 2412.02687, section 4.2), in diffusers' networks.

    add_nasa(network)                                                    # once
    network(x_t, t, text, **nasa_arguments(network, negative, alpha))    # in every steered call

`network` is a UNet2DConditionModel (SD 1.5, SD 2.1, SDXL) or a PixArtTransformer2DModel, plain or inside peft. What a
call needs travels as its arguments, so autograd sees it, and gradient checkpointing computes the same a second time.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from ..errors import UserError


def steer_away(z_positive: Tensor, z_negative: Tensor, alpha: Tensor | float) -> Tensor:
    """Z_NASA = Z+ - alpha Z-, after the heads are merged and before the output projection.

    Z [batch, image tokens, channels], alike in dtype; alpha a number or [batch, 1, 1]. Returns Z+'s dtype.
    """
    return (z_positive - alpha * z_negative).to(z_positive.dtype)


class NASAAttention(AttnProcessor2_0):
    """diffusers' own attention, which takes a negative prompt besides; without one, or in self-attention, unchanged."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        nasa_negative: Tensor | None = None,
        nasa_alpha: Tensor | float = 0.0,
        nasa_mask: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            hidden_states: [batch, image tokens, channels].
            encoder_hidden_states: the positive, [batch, tokens, width]; None in self-attention.
            attention_mask: the positive's, a bias [batch, 1, tokens] that diffusers adds to the scores.
            nasa_negative, nasa_alpha, nasa_mask: as `nasa_arguments` makes them.
        """
        if nasa_negative is None or encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None:
            attention_mask = attention_mask.unsqueeze(1)  # one more dimension, for the heads
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        z_positive = _attend(attn, query, encoder_hidden_states, attention_mask)
        z_negative = _attend(attn, query, nasa_negative, nasa_mask)
        projection, dropout = attn.to_out
        return dropout(projection(steer_away(z_positive, z_negative, nasa_alpha)))


def add_nasa(network: nn.Module) -> None:
    """Let every cross-attention layer of `network` take a negative prompt; calls without one stay bit-exact.

    Raises:
        UserError: a layer has another attention than diffusers' default, which NASA would silently replace.
    """
    found = {type(processor) for processor in network.attn_processors.values()}
    others = sorted(kind.__name__ for kind in found - {AttnProcessor2_0, NASAAttention})
    if any(name.startswith("Joint") for name in others):
        raise UserError(
            f"nasa: NASA-T steers cross-attention, and this network has joint attention ({others[0]}): leave `nasa` "
            f"out of the config."
        )
    if others:
        raise UserError(
            f"NASA needs diffusers' default attention, but this network has {', '.join(others)}: "
            f"call its set_attn_processor(AttnProcessor2_0()) first, or use another network."
        )
    network.set_attn_processor(NASAAttention())


def nasa_arguments(
    network: nn.Module, negative: Tensor, alpha: Tensor | float, negative_mask: Tensor | None = None
) -> dict[str, Any]:
    """The keyword arguments that steer one call of `network` away from `negative`.

    Args:
        network: after `add_nasa`; not wrapped for several processes.
        negative: the text encoder's output, [1 or batch, tokens, width], of any number of tokens. Gradients flow
            through it, and through PixArt's projection of it.
        alpha: the strength, a number or [batch]; 0 gives the plain call, bit for bit.
        negative_mask: [1 or batch, tokens], 1 where a token counts, at least one a row; None if all do.
    """
    caption_projection = getattr(network, "caption_projection", None)
    if caption_projection is not None:  # PixArt projects the text once, ahead of its layers
        negative = caption_projection(negative)
    return {
        "cross_attention_kwargs": {
            "nasa_negative": negative,
            "nasa_alpha": alpha.view(-1, 1, 1) if torch.is_tensor(alpha) else alpha,
            "nasa_mask": None if negative_mask is None else negative_mask.bool()[:, None, None],
        }
    }


def _attend(attn: Attention, query: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + mask) V with the heads merged; text of one row serves the whole batch."""
    heads = (_split_heads(project(text), attn.heads) for project in (attn.to_k, attn.to_v))
    key, value = (part.expand(len(query), -1, -1, -1) for part in heads)
    z = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return z.transpose(1, 2).flatten(2)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, channels] to [batch, heads, tokens, channels / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
