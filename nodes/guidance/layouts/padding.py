"""Tokens that fill a text up to a length."""

import torch


def without_padding(conds: dict[str, torch.Tensor]) -> torch.Tensor:
    """A text [batch, tokens, width] without the tokens that its attention mask, 1 and 0, leaves out in every row."""
    context, mask = conds["c_crossattn"], conds.get("attention_mask")
    return context if mask is None else context[:, (mask != 0).reshape(-1, mask.shape[-1]).any(dim=0)]
