"""Installs NASA in a model's cross-attention layers for one call of the model."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType

import torch

from .nasa import steer_away


class Steering:
    """What one layer needs for one call.

    It lies in attributes of modules, and the forwards that read it are functions of this pack: so torch.compile traces
    them once, guards them (unlike transformer_options) and does not recompile for a new alpha or prompt.

    Args:
        layer: the cross-attention, as the layout's `blocks` gave it.
        kept: (K-, V-) of the negatives whose projection is known.
        texts: the other negatives, still to be projected, each [1 or batch, tokens, width].
        strengths: alpha of each negative, those kept first: [batch, 1, 1], or a map as the layout's `spread` made it.
        norm_limit: as in `steer_away`.
        chunks: which cond each equal part of the batch belongs to: ComfyUI's cond_or_uncond.
        options: the call's transformer_options.
    """

    def __init__(self, layer, kept, texts, strengths, norm_limit, chunks, options):
        self.layer, self.kept, self.texts, self.strengths = layer, kept, texts, strengths
        self.norm_limit, self.chunks, self.options = norm_limit, chunks, options
        self.q = None

    def project(self, keys_values: Callable, context: torch.Tensor) -> tuple[tuple, list[tuple]]:
        """(K+, V+) and every (K-, V-); one projection for all, so that a weight is cast or moved once."""
        if not self.texts:
            return keys_values(self.layer, context), self.kept
        parts = [context, *(rows(text, context.shape[0], self.chunks) for text in self.texts)]
        k, v = keys_values(self.layer, torch.cat(parts, dim=1))
        lengths = [part.shape[1] for part in parts]
        positive, *negatives = zip(k.split(lengths, dim=1), v.split(lengths, dim=1), strict=True)
        return positive, [*self.kept, *negatives]

    def steer(self, z: torch.Tensor, negatives: list[tuple], attend: Callable, fit: Callable | None = None):
        """Z_NASA from Z+ and the (K-, V-) of every negative.

        Args:
            attend: attend(k, v) is the layer's own attention from its queries.
            fit: fit(x, z, chunks) gives x, with 1 row or one for every row of the model's batch, the rows of z.
        """
        fit = fit or _fitted
        z_negatives = [attend(fit(k, z, self.chunks), fit(v, z, self.chunks)) for k, v in negatives]
        strengths = [fit(alpha, z, self.chunks) for alpha in self.strengths]
        return steer_away(z, list(zip(z_negatives, strengths, strict=True)), self.norm_limit)


@contextmanager
def installed(layout: ModuleType, steerings: Iterable[Steering]) -> Iterator[None]:
    """Steer these layers during one call; afterwards, also after an error, every module is as it was."""
    before = []
    try:
        for steering in steerings:
            for module, forward in layout.forwards(steering.layer):
                before.append((module, module.__dict__.get("forward")))
                module.nasa_before = module.forward
                module.nasa = steering
                module.forward = MethodType(forward, module)
        yield
    finally:
        for module, forward in before:
            for name in ("nasa", "nasa_before", "forward"):
                module.__dict__.pop(name, None)
            if forward is not None:
                module.forward = forward


def rows(x: torch.Tensor, batch: int, chunks: list[int]) -> torch.Tensor:
    """x, [1 or model batch, ...], for a layer's batch, which another patch may have made larger than the model's.

    Attention couple repeats the rows of positive conds (0 in ComfyUI's cond_or_uncond) and leaves the others; whatever
    else changes the batch is taken to change every cond's rows alike. All rows of a cond are steered alike.
    """
    if x.shape[0] == batch:
        return x
    if x.shape[0] == 1:
        return x.expand(batch, *x.shape[1:])
    size, positive = x.shape[0] // len(chunks), chunks.count(0)
    times, rest = divmod(batch - size * (len(chunks) - positive), size * positive) if positive else (0, 0)
    if times > 0 and rest == 0:
        parts = zip(x.split(size), chunks, strict=True)
        return torch.cat([part for part, chunk in parts for _ in range(times if chunk == 0 else 1)])
    return x[::size].repeat_interleave(batch // len(chunks), dim=0)


def _fitted(x, z, chunks):
    """Image tokens that a model adds after the picture's own are not steered."""
    if x.shape[-1] == 1 and 1 < x.shape[1] < z.shape[1]:
        x = torch.nn.functional.pad(x, (0, 0, 0, z.shape[1] - x.shape[1]))
    return rows(x, z.shape[0], chunks)
