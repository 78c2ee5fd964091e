"""Where in the picture a negative acts, or a word of it: what every steered block is seen to do.

A block's tokens lie where the layout says that alpha lies: so the places of the picture, as maps over the latents, go
the way that alpha's own map goes, and come out as the place of every token.
"""

import torch

from .attention import Attention, Keys, Queries


class Watch:
    """Sees the blocks during one call of the model or more.

    Args:
        word: which tokens of the negative's keys are those of a word, bool [tokens]; None to see the whole negative.

    Attributes:
        places: maps over the latents, as the layers read alpha: the number of the picture, from 1, and the place along
            each dimension, from 1. A token of no picture, or of one that is not steered, has 0.
    """

    def __init__(self, word: torch.Tensor | None = None):
        self.word = word
        self.places: list[torch.Tensor] = []
        self._names: dict = {}
        self._seen: dict[str, list] = {}
        self._pictures = 0

    def begin(self, blocks, steerings: list, x: torch.Tensor, steered: torch.Tensor, conds: int) -> list[torch.Tensor]:
        """See these layers in a call with latents x [batch, channels, ...] of so many conds; the maps for `places`."""
        for steering in steerings:
            steering.watch = self
        self._names = {layer: name for name, layers in blocks.items() for layer in layers}
        self._pictures = len(x) // conds
        numbers = torch.arange(len(x), device=x.device) % self._pictures + 1.0
        like = torch.ones_like(x[:, :1], dtype=torch.float32)
        axes = [torch.arange(1.0, length + 1, device=x.device) for length in x.shape[2:]]
        grid = torch.meshgrid(*axes, indexing="ij")
        picture = numbers * (steered.to(x.device) != 0)
        return [like * picture.view(-1, *[1] * (x.ndim - 1)), *(like * axis for axis in grid)]

    @torch.compiler.disable
    def saw(self, layer, attention, z, steered, places) -> None:
        """What a layer did.

        Args:
            attention: () -> (its call, its queries, the negative's keys), asked for a word alone.
            z, steered: Z+ and what became of it, [rows, tokens, ...].
            places: for the same rows and tokens, each [rows, tokens].
        """
        if self.word is None:
            amount = _apart((steered.float() - z.float()).flatten(2))
        else:
            amount = self._share(*attention())
        picture, *axes = (place.flatten() for place in places)
        there = picture > 0
        # A token of several latents lies between them.
        axes = [torch.unique((axis[there] * 16).round(), return_inverse=True) for axis in axes]
        index = (picture[there].round().long() - 1, *(inverse for _, inverse in axes))
        total = amount.new_zeros(self._pictures, *(len(values) for values, _ in axes))
        count, amount = torch.zeros_like(total), amount.flatten()[there]
        total.index_put_(index, amount, accumulate=True)
        count.index_put_(index, torch.ones_like(amount), accumulate=True)
        self._seen.setdefault(self._names[layer], []).append(total / count.clamp(min=1))

    def _share(self, attention: Attention, queries: Queries, negative: Keys, *others: Keys) -> torch.Tensor:
        """What of the attention goes to the word, [rows, tokens]: the mean over the heads."""
        if negative.k.shape[attention.tokens] != len(self.word):
            raise ValueError(
                "The words of the negative prompt cannot be told apart in this model, which reads them in another "
                "number of pieces: leave word empty to see where the whole negative acts."
            )
        word, rest = (
            Keys(*(x.index_select(attention.tokens, which.nonzero().flatten().to(x.device)) for x in negative[:2]))
            for which in (self.word, ~self.word)
        )
        return attention.shares(queries, word, rest, *others)[0].flatten(2).mean(dim=-1)

    def maps(self) -> dict[str, torch.Tensor]:
        """Of every block that was steered, [batch, (frames,) height, width]: the mean over its layers."""
        names = dict.fromkeys(self._names.values())
        return {name: torch.stack(self._seen[name]).mean(dim=0) for name in names if name in self._seen}


def _apart(change: torch.Tensor) -> torch.Tensor:
    """How large a change [rows, tokens, width] is where it is any, without what all tokens have of it: [rows, tokens].

    Of all that a negative does, most is the same everywhere, as most of its tokens say nothing: on the demo model the
    whole change does not lie on what the negative names, and this does.
    """
    where = (change != 0).any(dim=-1, keepdim=True)
    mean = change.sum(dim=1, keepdim=True) / where.sum(dim=1, keepdim=True).clamp(min=1)
    return ((change - mean) * where).norm(dim=-1)
