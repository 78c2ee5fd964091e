"""What the demo counts and times on a running server."""

import statistics
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from comfyui.client import Client
from demo.graphs import METHODS, Graphs
from training.shapes.detector import Reading, read
from training.shapes.measurement import PAIRS, Pair, absent, accuracy_captions, kept, matches, share_of_colors

FIRST_SEED = 1000
BATCH = 50
ROUNDS = 11
OPEN_PROMPT = "a colored circle"
SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass
class Demo:
    """A server, its graphs and the strength of the negative prompts."""

    client: Client
    alpha: float
    graphs: Graphs = field(init=False)

    def __post_init__(self):
        self.graphs = Graphs(self.client.object_info())

    def pictures(self, method: str, prompt: str, negative: str, count: int, alpha: float | None = None) -> np.ndarray:
        """uint8 [count, 32, 32, 3]; the n-th picture of every method has the same noise."""
        alpha, made = self.alpha if alpha is None else alpha, []
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            graph = self.graphs.of(method, prompt, negative, FIRST_SEED + start, size, alpha)
            made += self.client.run(graph).pictures.values()
        return np.concatenate(made)

    def pair(self, pair: Pair, count: int) -> tuple[dict, dict[str, np.ndarray]]:
        """One row of the report's pairs, and the pictures of each method."""
        shown = {method: self.pictures(method, pair.prompt, pair.negative, count) for method in METHODS}
        shares = {method: shares_of(read(pictures), pair) for method, pictures in shown.items()}
        return {"prompt": pair.prompt, "negative": pair.negative, "n": count} | shares, shown

    def student(self, count: int) -> tuple[float, dict[str, float]]:
        """How often the named colour and shape both come, and the share of each colour where none is named."""
        right = 0
        for caption, number in tqdm(Counter(accuracy_captions(count)).items(), "captions followed", ncols=90):
            right += sum(matches(reading, caption) for reading in read(self.pictures("none", caption, "", number)))
        return right / count, share_of_colors(read(self.pictures("none", OPEN_PROMPT, "", count)))

    def sweep(self, pairs: list[Pair], count: int) -> list[list[np.ndarray]]:
        """For each pair the pictures at each alpha of SWEEP."""
        return [
            [self.pictures("nasa", pair.prompt, pair.negative, count, alpha) for alpha in SWEEP]
            for pair in tqdm(pairs, "the sweep of alpha", ncols=90)
        ]

    def maps(self, pairs: list[Pair], count: int) -> list[list[np.ndarray]]:
        """For each pair the pictures without, where the negative acts on these, and with."""
        return [
            [self.pictures(method, pair.prompt, pair.negative, count) for method in ("none", "overlay", "nasa")]
            for pair in pairs
        ]

    def seconds(self, rounds: int = ROUNDS) -> tuple[float, float]:
        """Median time of a run that makes one picture, without and with NASA, in turn; loading and text are cached."""
        taken = {"none": [], "nasa": []}
        for number in range(-2, rounds):  # the first two rounds fill the caches
            for method, seconds in taken.items():
                seed = FIRST_SEED + 7919 + number
                graph = self.graphs.of(method, PAIRS[0].prompt, PAIRS[0].negative, seed, 1, self.alpha)
                result = self.client.run(graph)
                if number >= 0:
                    seconds.append(result.seconds)
        return statistics.median(taken["none"]), statistics.median(taken["nasa"])


def shares_of(readings: list[Reading], pair: Pair) -> dict[str, float]:
    """How often the unwanted thing is absent and how often what the prompt asked for is there."""
    return {
        "absent": sum(absent(reading, pair.negative) for reading in readings) / len(readings),
        "kept": sum(kept(reading, pair.prompt) for reading in readings) / len(readings),
    }
