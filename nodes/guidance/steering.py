"""Installs NASA in a model's cross-attention layers for one call of the model.

A layer's own code computes Z+, or another pack's that took its place. What they share is where the queries come from
and where Z+ goes, the output projection: there NASA looks on, and subtracts. Rules that weigh the negative against the
prompt also look on where K+ and V+ come from.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import NamedTuple

import torch

from .attention import OVERRIDE, Attention, Keys, Part, Queries
from .rules import Seen, reads, steer_away
from .sight import asked, merged


class Attended(NamedTuple):
    """What a layout's attention came to.

    Attributes:
        z: what the layout made of it, [batch, tokens, heads, channels].
        part: Z and mass as the kernel gave them; None where none does.
        attention, queries, keys: the call.
    """

    z: torch.Tensor
    part: Part | None
    attention: Attention
    queries: Queries
    keys: Keys


class Steering:
    """What one layer needs for one call.

    It lies in attributes of modules, and the forwards that read it are functions of this pack: so torch.compile traces
    them once, guards them (unlike transformer_options) and does not recompile for a new alpha or prompt.

    Args:
        layout: the file of `layouts` that knows the layer.
        layer: the cross-attention, as the layout's `blocks` gave it.
        kept: (K-, V-) of the negatives whose projection is known.
        texts: the other negatives, each [1 or batch, tokens, width].
        strengths: alpha of each negative, those kept first: [batch, 1, 1], or a map as the layout's `spread` made it.
        rules: the name of each one's rule, and whether that is adaptive.
        norm_limit: as in `steer_away`.
        chunks: which cond each equal part of the batch belongs to: ComfyUI's cond_or_uncond.
        options: the call's transformer_options.
    """

    def __init__(self, layout, layer, kept, texts, strengths, rules, norm_limit, chunks, options):
        self.layout, self.layer, self.kept, self.texts = layout, layer, kept, texts
        self.strengths, self.rules, self.norm_limit = strengths, rules, norm_limit
        self.chunks, self.options = chunks, options
        self.weighs = set().union(*(reads(*rule) for rule in rules)) - {"text"}
        self.queries, self.keys, self.values, self.mask = (), (), (), None
        self.gates, self.gate = (), None
        self.positions = None
        self.override = None
        self.watch = None

    def forwards(self) -> list[tuple[torch.nn.Module, Callable]]:
        """The modules whose forward changes while the layer is steered, and what it becomes."""
        changed = self.layout.forwards(self.layer)
        return [*changed, *self.layout.prompt(self.layer)] if self.weighs else changed

    def handed(self, options: dict) -> dict:
        """The transformer_options for the layout's attention, where the layer's own gets these."""
        return options if self.override is None else {**options, OVERRIDE: partial(self.override, options)}

    def remember(self, k: torch.Tensor | None, v: torch.Tensor | None) -> None:
        """What a module of the layer made of the prompt, in the shapes of the layout's keys_values."""
        if k is not None:
            k = self.layout.shaped_keys(self.layer, k) if hasattr(self.layout, "shaped_keys") else k
            self.keys = (*self.keys, k)
        if v is not None:
            v = self.layout.shaped_values(self.layer, v) if hasattr(self.layout, "shaped_values") else v
            self.values = (*self.values, v)

    def steer(self, z: torch.Tensor) -> torch.Tensor:
        """Z_NASA from Z+ [batch, image tokens, channels] and the queries that were asked for since the last time."""
        q, self.queries = _whole(self.queries, z.shape[0]), ()
        if self.gates:
            self.gate, self.gates = _whole(self.gates, z.shape[0]), ()
        prompt = self.keys, self.values

        def fitted(x):
            return self.layout.fit(self.layer, x, z, self.chunks)

        negatives = [*self.kept, *(self.layout.keys_values(self.layer, text) for text in self.texts)]
        negatives = [(fitted(k), fitted(v)) for k, v in negatives]
        strengths = [fitted(alpha) for alpha in self.strengths]
        if self.weighs:
            away = self._weighed(z, q, prompt, negatives, strengths)
        else:
            away = self._away(z, q, negatives, strengths)
        if self.watch is not None:
            places = [fitted(place).squeeze(-1) for place in self.watch.places]
            self.watch.saw(self.layer, lambda: self._attended(q, *negatives[0])[2:], z, away, places)
        return away

    def _away(self, z, q, negatives, strengths):
        """By rules that read the negatives alone."""
        z_negatives = [self.layout.attend(self, q, k, v) for k, v in negatives]
        negatives = [
            (Seen(z_negative, z_negative), alpha, *rule)
            for z_negative, alpha, rule in zip(z_negatives, strengths, self.rules, strict=True)
        ]
        return steer_away(z, negatives, self.norm_limit)

    def _weighed(self, z, q, prompt, negatives, strengths):
        """By rules that weigh the negatives against the prompt's K+ and V+."""
        k, v = (_of_prompt(self.layer, asked, z.shape[0]) for asked in prompt)
        self.keys, self.values = (), ()  # those of the negatives came after the prompt's
        positive, self.mask = self._attended(q, k, v), None
        seen = [self._seen(positive, self._attended(q, k, v)) for k, v in negatives]
        strengths = [alpha.unsqueeze(-1) for alpha in strengths]
        negatives = [(sight, alpha, *rule) for sight, alpha, rule in zip(seen, strengths, self.rules, strict=True)]
        z = z.unflatten(2, positive.z.shape[2:])
        return steer_away(z, negatives, self.norm_limit, positive.z).flatten(2)

    def _attended(self, q, k, v) -> Attended:
        """By the layout's own attention, with its mass where a kernel gives it."""
        found = []

        def override(options, function, q, k, v, *arguments, **more):
            attention = Attention(function, options, arguments, more)
            queries, keys = Queries(q, slice(None), slice(None)), Keys(k, v)
            part = attention.apart(queries, keys) if attention.gives_masses(q) else None
            found.append((part, attention, queries, keys))
            return attention.result(attention(q, k, v, mask=attention.mask) if part is None else part.z)

        self.override = override
        z = self.layout.attend(self, q, k, v)
        self.override = None
        return Attended(z.unflatten(2, (found[0][1].heads, -1)), *found[0])

    def _seen(self, positive: Attended, negative: Attended) -> Seen:
        if positive.part is None or negative.part is None:
            prompt = positive.keys._replace(tokens=slice(0, positive.keys.k.shape[positive.attention.tokens]))
            needs = self.weighs - {"whole"}
            seen = asked(positive.attention, needs, negative.queries, prompt, negative.keys)
        else:
            seen = merged(self.weighs, positive.part, negative.part)
        return seen._replace(text=negative.z, whole=negative.z)


def remember(module, *args, **kwargs):
    """The forward of a module that gives a layer's queries."""
    q = module.nasa_before(*args, **kwargs)
    module.nasa.queries = (*module.nasa.queries, q)
    return q


def remember_keys(module, *args, **kwargs):
    """The forward of a module that gives a layer's keys."""
    k = module.nasa_before(*args, **kwargs)
    module.nasa.remember(k, None)
    return k


def remember_values(module, *args, **kwargs):
    """The forward of a module that gives a layer's values."""
    v = module.nasa_before(*args, **kwargs)
    module.nasa.remember(None, v)
    return v


def remember_both(module, *args, **kwargs):
    """The forward of a module that gives a layer's keys and values, told apart by its layout."""
    both = module.nasa_before(*args, **kwargs)
    module.nasa.remember(both, both)
    return both


def remember_gate(module, *args, **kwargs):
    """The forward of a module that gives what a layer multiplies Z+ by, before its output projection."""
    gate = module.nasa_before(*args, **kwargs)
    module.nasa.gates = (*module.nasa.gates, gate)
    return gate


def steered(module, z):
    """The forward of a layer's output projection."""
    return module.nasa_before(module.nasa.steer(z))


def _whole(asked: tuple[torch.Tensor, ...], batch: int) -> torch.Tensor:
    """What a module gave for all rows; another pack may ask for some rows at a time."""
    alike = [given for given in asked if given.shape[0] == batch]
    return alike[0] if alike else torch.cat(asked)


def _of_prompt(layer, asked: tuple[torch.Tensor, ...], batch: int) -> torch.Tensor:
    """K+ or V+ for all rows; RuntimeError where another pack made them in a way of its own."""
    if any(x.shape[0] == batch for x in asked) or len({x.shape[1:] for x in asked}) == 1:
        whole = _whole(asked, batch)
        if whole.shape[0] == batch:
            return whole
    raise RuntimeError(
        f"NASA cannot see the prompt's keys and values in {type(layer).__name__}, which another node pack must have "
        f"changed: in the NASA patch, choose nasa as the rule, with adaptive off."
    )


@contextmanager
def installed(steerings: Iterable[Steering]) -> Iterator[None]:
    """Steer these layers during one call; afterwards, also after an error, every module is as it was."""
    before = []
    try:
        for steering in steerings:
            for module, forward in steering.forwards():
                before.append((module, module.__dict__.get("forward")))
                # Not by setattr, which for a module takes a microsecond, times three, times 140 in SDXL.
                module.__dict__.update(nasa_before=module.forward, nasa=steering, forward=MethodType(forward, module))
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


def fit_rows(layer, x: torch.Tensor, z: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """A layout's `fit` where the image tokens of z are the picture's; those a model adds after them are not steered."""
    if x.shape[-1] == 1 and 1 < x.shape[1] < z.shape[1]:
        x = torch.nn.functional.pad(x, (0, 0, 0, z.shape[1] - x.shape[1]))
    return rows(x, z.shape[0], chunks)
