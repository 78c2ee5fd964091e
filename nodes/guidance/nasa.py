"""NASA, Negative-Away Steer Attention (SNOOPI, arXiv 2412.02687, section 4.2)."""

import torch


def steer_away(z_positive: torch.Tensor, z_negative: torch.Tensor, alpha: torch.Tensor | float) -> torch.Tensor:
    """Steer one cross-attention layer away from the negative prompt.

        Z+ = softmax(Q K+^T / sqrt(d)) V+        Z- = softmax(Q K-^T / sqrt(d)) V-
        Z_NASA = Z+ - alpha * Z-

    Both are taken after the heads are merged and before the output projection, from the same queries.

    Args:
        z_positive, z_negative: [batch, image tokens, channels].
        alpha: the strength, a number or [batch, 1, 1] in the dtype of the others; 0 leaves Z+ as it is.
    """
    return z_positive - alpha * z_negative
