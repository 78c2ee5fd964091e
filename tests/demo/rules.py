"""What every rule removes, keeps and harms on a demo model: `PYTHONPATH=tests:. python -P -m demo.rules`.

Of the world's eight pairs how often the unwanted thing is gone, what was asked for is kept, and both. Of a negative
that names what is not there, how often the picture still follows the prompt, and how far it moves, in RGB levels (root
of the mean square). Each rule at the alpha that did best at "both" on other noises, among those that leave at
least 98% of the irrelevant ones right, where there is such a one. CFG and NAG stand beside them: CFG from its own two
calls; NAG as its authors define it (arXiv 2505.21179, scale 1 + alpha, tau 2.5, blend .25), a rule of this process
alone. +- is one standard error. With --without-padding the rules read of a negative its words alone, without the end
tokens that fill it up.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.in_process import PACK, load_pack, start_comfyui

CHOOSING, MEASURING = 30_000, 20_000  # first seeds; `make demo` has others
HARMLESS = 98.0
METHODS = {
    "nothing": (0.0,), "CFG": (0.25, 0.5, 1.0, 2.0), "NAG": (2.0, 4.0, 8.0), "vsf": (0.25, 0.5, 1.0, 2.0, 3.5),
    "nasa": (0.25, 0.5, 1.0, 1.3), "nasa adaptive": (0.25, 0.5, 1.0, 1.3, 2.0),
    "difference": (0.5, 1.0, 2.0, 3.0, 4.0), "difference adaptive": (1.0, 2.0, 3.0, 4.0),
}  # fmt: skip


def nag(z, z_positive, negatives, tau=2.5, blend=0.25):
    for seen, alpha in negatives:
        guided = z_positive + alpha * (z_positive - seen.whole)
        norm, plain = (x.abs().sum(dim=(2, 3), keepdim=True) for x in (guided, z_positive))
        guided = guided * (tau * plain / norm.clamp(min=1e-12)).clamp(max=1)
        z = z + blend * (guided - z_positive)
    return z


class Model:
    """A demo model in this process.

    Args:
        padding: whether the rules read a negative's.
    """

    def __init__(self, checkpoint: Path, world, padding: bool = True):
        import comfy.sd
        import comfy.utils

        comfy.utils.set_progress_bar_enabled(False)
        self.payload, self.world, self.padding = load_pack(), world, padding
        package = self.payload.__name__.removesuffix(".guidance.payload")
        self.one_step, presets, rules = (
            sys.modules[f"{package}.{name}"] for name in ("sampling.one_step", "sampling.presets", "guidance.rules")
        )
        rules.RULES["NAG"] = nag, {"whole"}
        model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        model = self.one_step.with_preset(model, presets.all_presets()[world.preset])
        self.model, self.sigmas = self.one_step.steps(model)
        self.texts, self.plain = {}, {}

    def text(self, prompt: str) -> list:
        if prompt not in self.texts:
            self.texts[prompt] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
        return self.texts[prompt]

    def negative(self, prompt: str) -> list:
        """As the rules read it; the first of the end tokens is not padding."""
        if self.padding:
            return self.text(prompt)
        ((tokens,),) = self.clip.tokenize(prompt).values()
        numbers = [number for number, *_ in tokens]
        length = numbers.index(numbers[-1]) + 1
        return [[embedding[:, :length], options] for embedding, options in self.text(prompt)]

    def pictures(self, prompt: str, negative: str, method: str, alpha: float, seed: int, count: int):
        """uint8 [count, height, width, 3]."""
        import comfy.sample
        import comfy.samplers

        rule, *adaptive = method.split()
        model = self.model
        if rule not in ("nothing", "CFG"):
            model = self.payload.patch(model, self.negative(negative), alpha, rule=rule, adaptive=bool(adaptive))
        latent = torch.zeros(count, *self.world.latent)
        with torch.inference_mode():
            if rule == "CFG":
                noise = comfy.sample.prepare_noise(latent, seed)
                euler = comfy.samplers.sampler_object("euler")
                texts = self.text(prompt), self.text(negative)
                drawn = comfy.sample.sample_custom(model, noise, 1 + alpha, euler, self.sigmas, *texts, latent)
            else:
                drawn = self.one_step.sample(model, self.sigmas, self.text(prompt), {"samples": latent}, seed)
                drawn = drawn["samples"]
            return (self.vae.decode(drawn) * 255).round().clamp(0, 255).byte().numpy()

    def row(self, method: str, alpha: float, seed: int, count: int) -> dict:
        """Shares in percent, each with its standard error; "change" in RGB levels."""
        measured = self.world.measurement
        asked = [
            (measured.absent(reading, pair.negative), measured.kept(reading, pair.prompt))
            for pair in measured.PAIRS
            for reading in self.world.read(self.pictures(pair.prompt, pair.negative, method, alpha, seed, count))
        ]
        right, moved = [], []
        for pair in measured.IRRELEVANT:
            key = pair.prompt, seed, count
            if key not in self.plain:
                self.plain[key] = self.pictures(pair.prompt, "", "nothing", 0.0, seed, count)
            steered = self.pictures(pair.prompt, pair.negative, method, alpha, seed, count)
            right += [measured.matches(reading, pair.prompt) for reading in self.world.read(steered)]
            moved += [((steered.astype(float) - self.plain[key]) ** 2).mean() ** 0.5]
        hits = {
            "absent": [gone for gone, _ in asked], "kept": [there for _, there in asked],
            "both": [all(one) for one in asked], "harm_right": right,
        }  # fmt: skip
        shares = {name: sum(values) / len(values) for name, values in hits.items()}
        errors = {name: (share * (1 - share) / len(hits[name])) ** 0.5 for name, share in shares.items()}
        return {
            "method": method, "alpha": alpha, "n": len(asked), "change": sum(moved) / len(moved),
            "percent": {name: 100 * share for name, share in shares.items()},
            "error": {name: 100 * error for name, error in errors.items()},
        }  # fmt: skip

    def best(self, method: str, alphas: tuple[float, ...], count: int) -> tuple[dict, list[dict]]:
        """The row of a method's best alpha on the measuring noises, and the rows that chose it."""
        tried = [self.row(method, alpha, CHOOSING, count // 4) for alpha in alphas]
        harmless = [row for row in tried if row["percent"]["harm_right"] >= HARMLESS] or tried
        chosen = max(harmless, key=lambda row: row["percent"]["both"])["alpha"]
        return self.row(method, chosen, MEASURING, count), tried


def line(row: dict) -> str:
    """A row of the table that is printed."""
    percent, error = row["percent"], row["error"]
    shares = " | ".join(f"{percent[name]:.1f} ± {error[name]:.1f}" for name in ("absent", "kept", "both", "harm_right"))
    return f"| {row['method']} | {row['alpha']:g} | {shares} | {row['change']:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", default=["shapes"], help="shapes, portraits (default: shapes)")
    parser.add_argument("--count", type=int, default=100, help="pictures of each prompt")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="(default: all)")
    parser.add_argument("--without-padding", action="store_true", help="of the negative")
    parser.add_argument("--output", type=Path, default=PACK / "build" / "demo" / "rules.json", help="(%(default)s)")
    arguments = parser.parse_args()
    start_comfyui(pytorch_attention=True)
    sys.path.append(str(PACK))
    from demo.worlds import WORLDS

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    report = {}
    for name in arguments.worlds:
        with tempfile.TemporaryDirectory() as folder:
            world = WORLDS[name]()
            checkpoint = world.weights.write_checkpoint(Path(folder) / f"snoopi-{name}.safetensors")
            model = Model(checkpoint, world, padding=not arguments.without_padding)
        print(f"\n{name}\n| method | alpha | absent, % | kept, % | both, % | irrelevant: right, % | change |")
        print("|---|---|---|---|---|---|---|")
        report[name] = {}
        for method in arguments.methods:
            row, tried = model.best(method, METHODS[method], arguments.count)
            report[name][method] = row | {"tried": tried}
            print(line(row), flush=True)
            arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
