"""The rules that steer Z+, a layer's attention to the prompt, away from a negative prompt. Each is a pure function.

I are the keys of the picture (a cross-attention has none), P those of the prompt and N those of the negative. For a
query q and keys X, e_X = sum over X of exp(q k / sqrt(d)), and A_X = softmax over X alone, times V_X:

    Z+ = (e_I A_I + e_P A_P) / (e_I + e_P)        Z- = (e_I A_I + e_N A_N) / (e_I + e_N)

    nasa          Z+ - alpha A_N                                       SNOOPI, arXiv 2412.02687, section 4.2
    difference    Z+ + alpha (Z+ - Z-)                                 NAG, arXiv 2505.21179, without its clip and blend
    vsf           (Z+ - alpha m A_N) / (1 + a m), a = min(alpha, 1)    VSF, arXiv 2508.10931: one softmax over all keys,
                  m = e_N / (e_I + e_P)                                the values of N times -alpha
    adaptive      alpha min(2 (1 - W), 1) in place of alpha            ours: less where the prompt takes nearly all
                  W = e_P / (e_P + e_N)

Every Z is taken from the same queries, after rope and before the output projection: [batch, tokens, heads, channels];
masses and strengths are [batch, tokens, heads, 1], or broadcast to it. Where alpha is 0, Z+ stays as it is. What a
model adds to Z+ of a cross-attention, such as its attention to the tokens of a picture, is not steered.
"""

from typing import NamedTuple

import torch

#: Of use are up to 1 or 2 for nasa, 3 for difference and 3.5 to 6 for vsf, as its authors run it.
LARGEST_ALPHA = 10.0
#: Beside so large an m nothing is left of Z+; it keeps vsf's fraction finite.
LARGEST_MASS = 1e6


class Seen(NamedTuple):
    """What the queries see of one negative; None for what no rule in use reads.

    Attributes:
        text: A_N.
        whole: Z-, which is A_N in a cross-attention.
        mass: m.
        share: W.
    """

    text: torch.Tensor | None = None
    whole: torch.Tensor | None = None
    mass: torch.Tensor | None = None
    share: torch.Tensor | None = None


def nasa(z, z_positive, negatives):
    for seen, alpha in negatives:
        z = torch.addcmul(z, alpha, seen.text, value=-1)  # z - alpha * A_N, in one pass
    return z


def difference(z, z_positive, negatives):
    for seen, alpha in negatives:
        z = torch.addcmul(z, alpha, z_positive - seen.whole)
    return z


def vsf(z, z_positive, negatives):
    """As a change of Z+: Z+ - sum of (alpha m A_N + a m Z+) / (1 + sum of a m)."""
    change, total = 0.0, 1.0
    for seen, alpha in negatives:
        mass = seen.mass.clamp(max=LARGEST_MASS)
        limited = alpha.clamp(max=1.0)
        change = change + mass * (alpha * seen.text + limited * z_positive)
        total = total + mass * limited
    return z - change / total


#: Every rule by its name, and what it reads of a negative.
RULES = {"nasa": (nasa, {"text"}), "difference": (difference, {"whole"}), "vsf": (vsf, {"text", "mass"})}


def reads(rule: str, adaptive: bool) -> set[str]:
    """The attributes of Seen that a rule needs."""
    return RULES[rule][1] | ({"share"} if adaptive else set())


def steer_away(
    z_positive: torch.Tensor,
    negatives: list[tuple[Seen, torch.Tensor, str, bool]],
    norm_limit: float = 0.0,
    z_text: torch.Tensor | None = None,
) -> torch.Tensor:
    """Z+ steered away from each of these negatives.

    Args:
        z_positive: Z+, [batch, tokens, heads, channels].
        negatives: what is seen of each, its alpha in the dtype of Z+, the name of its rule, and whether that is
            adaptive.
        norm_limit: the largest L1 norm of a token of the result, all heads together, as a multiple of the same token's
            in Z+ (NAG, equation 8, where it is tau); 0 for none.
        z_text: Z+ without what the model added to it, as the rules that read it compare it with Z-; None for Z+ itself.
    """
    z, z_text = z_positive, z_positive if z_text is None else z_text
    for name, (rule, _) in RULES.items():
        here = [
            (seen, alpha * (2 - 2 * seen.share).clamp(max=1.0).to(alpha.dtype) if adaptive else alpha)
            for seen, alpha, chosen, adaptive in negatives
            if chosen == name
        ]
        if here:
            z = rule(z, z_text, here).to(z.dtype)
    if norm_limit:
        features = tuple(range(2, z.ndim))
        norm, largest = (x.abs().sum(dim=features, keepdim=True, dtype=torch.float32) for x in (z, z_positive))
        z = z * (norm_limit * largest / norm.clamp(min=1e-12)).clamp(max=1.0).to(z.dtype)
    return z
