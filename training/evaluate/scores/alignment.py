"""How near pictures are to texts: a CLIP's cosine. CLIP score, CLIP+ and CLIP-, HPSv2 and PickScore are its rows."""

from typing import Literal

import numpy
import torch

from ...errors import UserError, quoted
from ...recipe.schema import Block, Name, Number, Text, Whole, setting
from ..intervals import of_mean
from . import Seen, Value, grouped

BATCH = 64


class Settings(Block):
    network: Name = setting("vit_g_14", "a row of weights.yaml that reads text too, or MODULE:CLASS")
    text: Literal["prompt", "negative"] = setting("prompt", "which of the two")
    prefix: Text = setting("", "what stands before each text")
    scale: Number = setting(1.0, "what the cosine is multiplied by", low=1e-6, high=1e6)
    mean_of: Whole | None = setting(
        None, "HPSv2: a group is the mean of the means of so many in a row; null: the plain mean", low=2, high=10**6
    )
    sha256: Name | None = setting(None, "what the SHA-256 of the network's file begins with, instead of what is known")


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    """{"alignment": ...}, with a value for each group, in their order."""
    network = seen.features.network(settings.network, settings.sha256)
    prompts = seen.pictures.prompts
    texts = [prompt.negative if settings.text == "negative" else prompt.prompt for prompt in prompts]
    if without := [prompt.id for prompt, text in zip(prompts, texts, strict=True) if not text]:
        raise UserError(
            f"{len(without)} pictures have no negative prompt, the first is {quoted(without[0])}; name the prompt "
            f"set's column with `prompts.negative`."
        )
    seen.used[settings.network] = network.described
    pictures = torch.nn.functional.normalize(seen.features.of(seen.pictures, settings.network, settings.sha256), dim=1)
    unique = list(dict.fromkeys(texts))
    parts = [unique[start : start + BATCH] for start in range(0, len(unique), BATCH)]
    read = torch.cat([network.texts([settings.prefix + text for text in part]) for part in parts])
    row = {text: number for number, text in enumerate(unique)}
    words = torch.nn.functional.normalize(read, dim=1)[[row[text] for text in texts]]
    cosines = (settings.scale * (pictures * words).sum(1)).double().numpy()
    groups = {
        name: of_group(name, cosines[places], settings.mean_of) for name, places in grouped(seen.pictures).items()
    }
    return {"alignment": Value(float(cosines.mean()), len(cosines), of_mean(cosines), groups)}


def of_group(name: str, values: numpy.ndarray, mean_of: int | None) -> Value:
    """Raises UserError where the group cannot be cut into rows of `mean_of`."""
    if mean_of is None:
        return Value(float(values.mean()), len(values), of_mean(values))
    if len(values) % mean_of:
        raise UserError(
            f"The group {quoted(name)} holds {len(values)} pictures; this score takes means of {mean_of} in a row, so "
            f"give a multiple of it (HPSv2: 800)."
        )
    means = values.reshape(-1, mean_of).mean(1)
    return Value(float(means.mean()), len(values), of_mean(values), more={"deviation_of_means": float(means.std())})
