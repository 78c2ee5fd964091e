"""How each rule does on the demo model: `PYTHONPATH=tests python -P -m demo.rules CHECKPOINT`.

Of the demo's pairs how often the unwanted thing is gone, what was asked for is kept, and both. Of a negative that has
nothing to do with the prompt, how often the picture still follows the prompt, and how far it moves, in RGB levels (root
of the mean square). The noises are not those of the demo. Texts are 77 tokens long, as CLIP pads them; besides, the
negative without its padding (its words alone, as encoders give it that do not pad), and twice as long.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.in_process import PACK, load_pack, start_comfyui

FIRST_SEED = 20_000
IRRELEVANT = [
    ("a red circle", "blue"), ("a green square", "red"), ("a blue triangle", "green"), ("a yellow cross", "blue"),
    ("a red cross", "square"), ("a green circle", "cross"), ("a blue square", "circle"), ("a red triangle", "square"),
]  # fmt: skip
RULES = {
    "nasa": (0.5, 0.75, 1.0, 1.3, 1.6), "nasa adaptive": (0.75, 1.0, 1.3, 1.6, 2.0, 2.5),
    "difference": (0.5, 1.0, 2.0, 3.0), "difference adaptive": (1.0, 2.0, 3.0), "vsf": (1.0, 2.0, 3.5),
}  # fmt: skip
LENGTHS = {"77 tokens": lambda text, words: text, "its words alone": lambda text, words: text[:, : words + 2],
           "154 tokens": lambda text, words: torch.cat([text, text], dim=1)}  # fmt: skip


class Model:
    """The demo model in this process."""

    def __init__(self, checkpoint: Path, count: int):
        import comfy.sd
        import comfy.utils

        comfy.utils.set_progress_bar_enabled(False)
        self.payload = load_pack()
        package = self.payload.__name__.removesuffix(".guidance.payload")
        self.one_step, presets = (sys.modules[f"{package}.sampling.{name}"] for name in ("one_step", "presets"))
        model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        model = self.one_step.with_preset(model, presets.all_presets()["snoopi-shapes"])
        self.model, self.sigmas = self.one_step.steps(model)
        self.count, self.texts, self.plain = count, {}, {}

    def text(self, prompt: str) -> list:
        if prompt not in self.texts:
            self.texts[prompt] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
        return self.texts[prompt]

    def pictures(self, prompt, negative=None, alpha=0.0, rule="nasa", adaptive=False, length="77 tokens"):
        """uint8 [count, 32, 32, 3]."""
        model = self.model
        if negative:
            ((text, options),) = self.text(negative)
            text = LENGTHS[length](text, len(negative.split()))
            model = self.payload.patch(model, [[text, options]], alpha, rule=rule, adaptive=adaptive)
        latent = {"samples": torch.zeros(self.count, 4, 4, 4)}
        with torch.inference_mode():
            latent = self.one_step.sample(model, self.sigmas, self.text(prompt), latent, FIRST_SEED)["samples"]
            return (self.vae.decode(latent) * 255).round().clamp(0, 255).byte().numpy()

    def row(self, alpha, rule, adaptive, length) -> list[float]:
        """Removed, kept, both, irrelevant right (all in percent), irrelevant moved."""
        from training.shapes.detector import read
        from training.shapes.measurement import PAIRS, absent, kept, matches

        asked = [
            (absent(reading, pair.negative), kept(reading, pair.prompt))
            for pair in PAIRS
            for reading in read(self.pictures(pair.prompt, pair.negative, alpha, rule, adaptive, length))
        ]
        right, moved = [], []
        for prompt, negative in IRRELEVANT:
            plain = self.plain[prompt] = self.plain[prompt] if prompt in self.plain else self.pictures(prompt)
            steered = self.pictures(prompt, negative, alpha, rule, adaptive, length)
            right += [matches(reading, prompt) for reading in read(steered)]
            moved.append(((steered.astype(float) - plain) ** 2).mean() ** 0.5)
        shares = [sum(hit) / len(asked) for hit in (*zip(*asked, strict=True), [all(hits) for hits in asked])]
        return [*(100 * share for share in (*shares, sum(right) / len(right))), sum(moved) / len(moved)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of the demo model, as `make demo` puts it together")
    parser.add_argument("--count", type=int, default=100, help="pictures of each prompt")
    arguments = parser.parse_args()
    start_comfyui(pytorch_attention=True)
    sys.path.append(str(PACK))
    model = Model(arguments.checkpoint, arguments.count)
    print("| rule, alpha | negative | removed / kept / both, % | irrelevant: right, % / moved |\n|---|---|---|---|")
    for length in LENGTHS:
        for name, alphas in RULES.items():
            rule, *adaptive = name.split()
            for alpha in alphas:
                removed, kept, both, right, moved = model.row(alpha, rule, bool(adaptive), length)
                figures = f"{removed:.1f} / {kept:.1f} / {both:.1f} | {right:.1f} / {moved:.1f}"
                print(f"| {name} {alpha:g} | {length} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
