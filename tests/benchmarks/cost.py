"""FLOPs, peak memory and time of one picture of each variant. ComfyUI must be started before the import."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher

from benchmarks import counting, report
from benchmarks.joint_networks import DEEP, JOINT
from benchmarks.networks import NETWORKS, build
from benchmarks.pictures import ALPHA, CFG_SCALE, VARIANTS, Pictures

SETTINGS = {"alpha": ALPHA, "cfg_scale": CFG_SCALE, "sampler": "euler", "scheduler": "simple", "batch": 1}
ON_GPU = torch.cuda.is_available()
#: The processor's own time is steadier beside others, but counts every thread of it.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Case:
    """A picture to measure.

    Attributes:
        tokens: of the positive and the negative text; None for what is usual with the network.
        timed: the variants whose time and memory are measured; none to count FLOPs alone.
        rule: of the patch.
        flops: the most that nasa may cost, over plain; None without a promise.
        others: what it may cost of peak_bytes and seconds, where that is not as for all.
        kernel: whether attention is torch's own, which gives masses; else as if another pack had put its own there.
    """

    network: str
    pixels: int = 512
    tokens: tuple[int, int] | None = None
    timed: tuple[str, ...] = VARIANTS
    compiled: bool = False
    rule: str = "auto"
    flops: float | None = 1.019
    others: tuple[tuple[str, float], ...] = ()
    kernel: bool = True

    @property
    def title(self) -> str:
        network = NETWORKS[self.network]
        tokens = "{} and {} tokens".format(*(self.tokens or network.tokens))
        others = "" if self.kernel else ", attention of another pack"
        return f"{network.title}, {self.pixels} px, {tokens}{', compiled' if self.compiled else ''}{self._rule}{others}"

    @property
    def _rule(self) -> str:
        return "" if self.rule == "auto" else f", {self.rule}"


RULES = "difference", "nasa", "vsf"
#: What joint attention may cost in FLOPs, by the tokens of the negative.
JOINT_BARS = {
    "flux": {20: 1.01, 64: 1.02, 256: 1.08},
    "flux2": {64: 1.14, 512: 1.14},  # ComfyUI fills a text up to 512
    "sd35_large": {20: 1.02, 64: 1.02, 256: None},
    "qwen_image": {20: 1.02, 64: 1.02},
    "z_image": {20: 1.02, 64: 1.02},
}
CASES = [
    Case("sd15"),
    Case("sdxl"),
    Case("sdxl", 1024, timed=VARIANTS if ON_GPU else ()),
    *([Case("sdxl", 1024, compiled=True)] if ON_GPU else []),
    Case("pixart"),
    Case("pixart", tokens=(120, 120), timed=("plain", "nasa"), flops=1.04),  # as long as they get
    Case("pixart", 1024, timed=VARIANTS if ON_GPU else ()),
    # The paper's plain rule, which does not weigh the prompt.
    Case("sd15", timed=(), rule="nasa"),
    Case("sdxl", 1024, timed=(), rule="nasa"),
    Case("pixart", timed=(), rule="nasa"),
    Case("pixart", tokens=(120, 120), timed=(), rule="nasa"),
    *(Case(network, 1024, timed=(), flops=None) for network in JOINT if network not in JOINT_BARS),
    *(
        Case(network, 1024, (JOINT[network].tokens[0], negative), (), rule=rule, flops=most)
        for network, bars in JOINT_BARS.items()
        for negative, most in bars.items()
        for rule in (RULES if negative == min(bars) else RULES[:1])
    ),
    *(
        Case(network, 1024, timed=(), rule="difference", flops=1.29 if network == "flux2" else 1.25, kernel=False)
        for network in JOINT_BARS
    ),
    *(
        Case(f"{network}_deep", timed=("plain", "nasa"), flops=None, others=(("peak_bytes", 1.02), ("seconds", 1.10)))
        for network in DEEP
    ),
]


def measure_all(
    payload: ModuleType,
    dtype: torch.dtype,
    rounds: int,
    only: list[str],
    narrow: bool,
    clock: str,
    say: Callable[[str], None],
) -> Iterator[dict]:
    """The figures of every case, or of those with the networks `only`; one network is in memory at a time."""
    for name in only or NETWORKS:
        if not hasattr(comfy.supported_models, NETWORKS[name].config_class):
            say(f"{NETWORKS[name].title}: not in this ComfyUI")
            continue
        began = time.monotonic()
        model = build(NETWORKS[name], dtype, narrow)
        say(f"{NETWORKS[name].title}: built in {name_of(dtype)} in {time.monotonic() - began:.0f} s")
        for case in CASES:
            if case.network == name:
                yield measure(case, payload, model, rounds, CLOCKS[clock], say)
        del model
        gc.collect()


def measure(
    case: Case,
    payload: ModuleType,
    model: ModelPatcher,
    rounds: int,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> dict:
    """The case's figures: flops, flops_4_steps, peak_bytes and seconds, each with its ratios to plain."""
    network = NETWORKS[case.network]
    tokens = case.tokens or network.tokens
    figures = {"title": case.title, "pixels": case.pixels, "tokens": tokens, "dtype": name_of(model.model_dtype())}
    figures["most"] = dict(case.others) | ({} if case.flops is None else {"flops": case.flops})
    model = compiled(model) if case.compiled else model
    model = model if case.kernel else overridden(model)

    def pictures() -> Pictures:
        return Pictures(payload, model, network, case.pixels, tokens, case.rule)

    def tell(words: str) -> None:
        say(f"{case.title}: {words}")

    if case.compiled:
        tell("compiling")
        warm_up(pictures())
    else:
        tell("counting FLOPs")
        figures |= count_joint(pictures()) if network.counted_only else count_flops(pictures())
    if case.timed:
        tell("measuring memory")
        made = pictures()
        figures["peak_bytes"] = measure_memory(made, case.timed)
        if rounds:
            figures["seconds"] = take_turns(made, case.timed, rounds, clock, tell)
    return figures


def warm_up(pictures: Pictures) -> None:
    """Every variant twice: torch.compile may see in the second picture what changes."""
    for variant in VARIANTS * 2:
        pictures.sample(variant, pictures.model_of(variant))


def count_flops(pictures: Pictures) -> dict:
    """FLOPs of each variant in one step, and of a first picture in four."""

    def count(variant: str, steps: int) -> int:
        model = pictures.model_of(variant)
        return counting.flops(lambda: pictures.sample(variant, model, steps))

    count("nasa", 1)  # what comes after is no first picture
    one = {variant: count(variant, 1) for variant in VARIANTS}
    four = {variant: count(variant, 4) for variant in ("plain", "nasa_first")}
    return {"flops": with_ratio(one), "flops_4_steps": with_ratio(four)}


def count_joint(pictures: Pictures) -> dict:
    """FLOPs of one step; joint attention keeps nothing from picture to picture but the negative's embedded text."""
    counts = {}
    for variant in ("plain", "nasa"):
        model = pictures.model_of(variant)
        counts[variant] = counting.flops(lambda model=model, variant=variant: pictures.sample(variant, model))
    return {"flops": with_ratio(counts)}


def with_ratio(figures: dict[str, int]) -> dict:
    return figures | {"ratio": {name: figure / figures["plain"] for name, figure in figures.items() if name != "plain"}}


def measure_memory(pictures: Pictures, variants: tuple[str, ...]) -> dict:
    """Peak memory of each variant: the network's weights and the most that sampling holds above them.

    What the patch keeps for the next picture counts: with nasa, a first and a second picture are made.
    """
    weights, peaks = pictures.model.model_size(), {}
    for variant in variants:
        models = [pictures.model_of("nasa_first")] * 2 if variant == "nasa" else [pictures.model_of(variant)]

        def sample(variant=variant, models=models):
            for model in models:
                pictures.sample(variant, model)

        gc.collect()
        peaks[variant] = weights + counting.peak_bytes(sample)
    return {"weights": weights, **with_ratio(peaks)}


def take_turns(
    pictures: Pictures,
    variants: tuple[str, ...],
    rounds: int,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> dict:
    """Seconds of each variant in every round, and the ratios to plain within the rounds."""
    taken = {variant: [] for variant in variants}
    pictures.sample("nasa", pictures.model_of("nasa"))  # its first picture; all others have run once
    load_average = [report.load_average()]
    for number in range(rounds):
        turn = number % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            taken[variant].append(seconds(pictures, variant, clock))
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {each[-1]:.2f} s" for name, each in taken.items()))
    load_average.append(report.load_average())
    ratio = {}
    for variant in variants[1:]:
        ratios = [one / plain for one, plain in zip(taken[variant], taken["plain"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
        ratio[variant] = {"median": statistics.median(ratios), "quartiles": quartiles[::2], "rounds": ratios}
    median = {name: statistics.median(each) for name, each in taken.items()}
    return {"median": median, "rounds": taken, "ratio": ratio, "load_average": load_average}


def seconds(pictures: Pictures, variant: str, clock: Callable[[], float]) -> float:
    """The time of one picture, of a model that is loaded."""
    model = pictures.model_of(variant)
    gc.collect()
    synchronize()
    start = clock()
    pictures.sample(variant, model)
    synchronize()
    return clock() - start


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def compiled(model: ModelPatcher) -> ModelPatcher:
    """What the core's TorchCompileModel node gives."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, "inductor").result[0]


def overridden(model: ModelPatcher) -> ModelPatcher:
    """As a node leaves it that puts an attention of its own in the place of ComfyUI's."""
    model = model.clone()
    options = model.model_options["transformer_options"]
    attend = {"optimized_attention_override": lambda attention, *args, **more: attention(*args, **more)}
    model.model_options["transformer_options"] = options | attend
    return model


def fastest_dtype(say: Callable[[str], None]) -> torch.dtype:
    """fp16 on a GPU; on a CPU bf16 or fp32, whichever has a layer of the networks' size done sooner."""
    if ON_GPU:
        return torch.float16
    taken = {}
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            layer, picture = torch.nn.Linear(640, 2560, dtype=dtype), torch.randn(4096, 640, dtype=dtype)
            for _ in range(5):
                start = time.perf_counter()
                layer(picture)
                taken[dtype] = min(taken.get(dtype, float("inf")), time.perf_counter() - start)
    best = min(taken, key=taken.get)
    say(f"{name_of(best)}: a layer takes " + ", ".join(f"{t * 1000:.1f} ms in {name_of(d)}" for d, t in taken.items()))
    return best


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
