"""NASA, Negative-Away Steer Attention (SNOOPI, arXiv 2412.02687, section 4.2)."""

import torch


def steer_away(
    z_positive: torch.Tensor, z_negatives: list[tuple[torch.Tensor, torch.Tensor]], norm_limit: float = 0.0
) -> torch.Tensor:
    """Steer one cross-attention layer away from its negative prompts.

        Z+ = softmax(Q K+^T / sqrt(d)) V+        Z- = softmax(Q K-^T / sqrt(d)) V-
        Z_NASA = Z+ - alpha * Z-

    All are taken after the heads are merged and before the output projection, from the same queries. Several negatives
    are subtracted one after another.

    Args:
        z_positive: [batch, image tokens, channels].
        z_negatives: each Z-, in the shape and dtype of Z+, with its alpha, [batch, 1, 1] or [batch, image tokens, 1]
            in that dtype; where it is 0, Z+ stays as it is.
        norm_limit: the largest L1 norm of a token of Z_NASA, as a multiple of the same token's in Z+ (NAG, arXiv
            2505.21179, equation 8, where it is tau); 0 for none.
    """
    z = z_positive
    for z_negative, alpha in z_negatives:
        z = torch.addcmul(z, alpha, z_negative, value=-1)  # z - alpha * z_negative, in one pass
    if norm_limit:
        norm, largest = (x.abs().sum(dim=-1, keepdim=True, dtype=torch.float32) for x in (z, z_positive))
        z = z * (norm_limit * largest / norm.clamp(min=1e-12)).clamp(max=1.0).to(z.dtype)
    return z
