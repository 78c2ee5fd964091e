"""What the queries of a layer see of a negative, as the rules read it: from masses, or by asking attention."""

import torch

from .attention import Attention, Keys, Part, Queries
from .rules import Seen


def merged(needs: set[str], prompt: Part, negative: Part, image: Part | None = None) -> Seen:
    """From attention to each part of the keys and its mass; a cross-attention has no image among its keys."""
    others = prompt.mass if image is None else torch.logaddexp(image.mass, prompt.mass)
    whole = negative if image is None or "whole" not in needs else image.joined(negative)
    mass = (negative.mass - others).exp() if "mass" in needs else None
    share = (prompt.mass - negative.mass).sigmoid() if "share" in needs else None
    return Seen(negative.z, whole.z, mass, share)


def asked(
    attention: Attention, needs: set[str], queries: Queries, prompt: Keys, negative: Keys, image: Keys | None = None
) -> Seen:
    """By attention alone: what needs the image's keys is a second attention over it."""
    images = () if image is None else (image,)
    mass = share = None
    if needs & {"mass", "share"}:
        of_negative, of_prompt, *of_image = attention.shares(queries, negative, prompt, *images)
        mass = of_negative / sum(of_image, of_prompt)
        share = of_prompt / (of_prompt + of_negative)
    return Seen(
        attention.to(queries, negative) if "text" in needs else None,
        attention.to(queries, negative, *images) if "whole" in needs else None,
        mass,
        share,
    )
