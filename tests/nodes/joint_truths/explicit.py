"""Attention by explicit probabilities, and what whole networks written out by hand share."""

import torch


def attend(q, *parts):
    """Attention over all parts (K, V, bias) together; [batch, heads, tokens, channels]."""
    return softmax_of(q, *parts)


def softmax_of(q, *parts):
    """softmax(q K^T / sqrt(d)) V, which a test may replace in all networks at once."""
    scores = torch.cat([q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias for k, _, bias in parts], dim=-1)
    return scores.softmax(-1) @ torch.cat([v for _, v, _ in parts], dim=2)


def total(q, k):
    """Sum of exp(q k / sqrt(d)) over the keys, fp64."""
    return (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).exp().sum(-1, keepdim=True)


class Steer:
    """Z of the picture's queries.

    Args:
        contexts: the negatives' embeddings, each [1 or batch, tokens, width].
        alphas: of each, [batch, tokens of the picture or 1].
        rule, adaptive: as in rules.py.
        only: the names of the blocks that are steered; None for all.
        norm_limit: as in rules.py.
        more: what else is read of each negative, by the names of the network's arguments.
    """

    def __init__(self, contexts, alphas, rule, adaptive=False, only=None, norm_limit=0.0, more=None):
        self.contexts, self.alphas, self.rule, self.adaptive, self.only = contexts, alphas, rule, adaptive, only
        self.norm_limit, self.more = norm_limit, more or [{}] * len(contexts)

    def z(self, place, q, prompt, image, negatives):
        """prompt, image and each of negatives: (k, v)."""
        (kp, vp), (ki, vi) = prompt, image
        plain = z = attend(q, (kp, vp, 0), (ki, vi, 0))
        if self.only is not None and place not in self.only:
            return z
        subtracted, mass = 0, 1
        for (kn, vn), alpha in zip(negatives, self.alphas, strict=True):
            alpha = alpha[:, None, :, None]
            if self.adaptive:
                share = total(q, kp) / (total(q, kp) + total(q, kn))
                alpha = alpha * (2 * (1 - share)).clamp(max=1).float()
            if self.rule == "nasa":
                z = z - alpha * attend(q, (kn, vn, 0))
            elif self.rule == "difference":
                z = z + alpha * (plain - attend(q, (kn, vn, 0), (ki, vi, 0)))
            else:
                m = (total(q, kn) / (total(q, ki) + total(q, kp))).float()
                subtracted = subtracted + alpha * m * attend(q, (kn, vn, 0))
                mass = mass + alpha.clamp(max=1) * m
        z = z if self.rule != "vsf" else (z - subtracted) / mass
        if self.norm_limit and self.alphas:
            ratio = z.abs().sum((1, 3), keepdim=True) / plain.abs().sum((1, 3), keepdim=True)
            z = torch.where(ratio > self.norm_limit, z * self.norm_limit / ratio, z)
        return z


def rotated(x, ids, axes, theta=10000):
    """Rope by complex numbers, pairs of neighbours: x [batch, heads, tokens, channels], ids [tokens, axes]."""
    angles = [ids[:, n : n + 1].double() / theta ** (torch.arange(0, d, 2).double() / d) for n, d in enumerate(axes)]
    turn = torch.polar(torch.ones(()).double(), torch.cat(angles, dim=-1))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def patchified(x, size):
    """[batch, tokens, channels * size * size], and the ids (row, column) of its tokens."""
    pad = [-n % size for n in x.shape[-2:]]
    x = torch.nn.functional.pad(x, (0, pad[1], 0, pad[0]), mode="circular")
    rows, columns = x.shape[-2] // size, x.shape[-1] // size
    tokens = x.unflatten(-1, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 1, 3, 5)
    return (
        tokens.flatten(3).flatten(1, 2),
        torch.cartesian_prod(torch.arange(rows), torch.arange(columns)),
        (rows, columns),
    )


def unpatchified(tokens, size, grid, shape):
    """The reverse of `patchified`, cut to shape."""
    x = tokens.unflatten(-1, (-1, size, size)).unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4).flatten(2, 3)[..., : shape[-2], : shape[-1]]


def merged(z):
    return z.transpose(1, 2).flatten(2)


def normed(x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def weight_of(norm):
    return norm.scale if hasattr(norm, "scale") else norm.weight


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
