"""Who says whether something is in a picture: a CLIP without training for it, or anyone's own class.

A judge has

    described                                     what goes into result.json
    present(uint8 [n, height, width, 3], thing, contrast)    -> n of True, False or None (undecided)
    shows(uint8 [n, height, width, 3], prompt)               -> the same of all that a prompt asks for

It is asked for presence, never for absence, which judges of all kinds get wrong more often.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy
import torch

from ..errors import UserError, quoted
from ..prompts.read import read_prompts
from ..recipe.schema import REQUIRED, Block, Name, Number, setting
from .feature_networks import plugged_in
from .intervals import wilson
from .pictures import Pictures
from .prompt_set import Prompt
from .scores import Seen, Value, grouped

Verdict = bool | None
BATCH = 64


class Judge(Protocol):
    described: dict[str, Any]

    def present(self, pixels: numpy.ndarray, thing: str, contrast: str) -> list[Verdict]: ...

    def shows(self, pixels: numpy.ndarray, prompt: str) -> list[Verdict]: ...


class JudgeSettings(Block):
    judge: Name = setting(REQUIRED, "a row of weights.yaml that reads text (zero-shot CLIP), or MODULE:CLASS")
    band: Number = setting(0.1, "zero-shot: undecided where the probability is within this of 1/2", low=0, high=0.5)
    template: Name = setting("a photo of {}", "zero-shot: the sentence about a thing; {} is its place")
    labels: Name | None = setting(
        None, ".jsonl of `id` and `present` (yes or no) by hand, by which the judge's own errors are told"
    )


class ZeroShot:
    """softmax of 100 times the cosines with two sentences: of the thing, and of its contrast."""

    def __init__(self, network: Any, settings: JudgeSettings):
        self.network, self.settings = network, settings
        self.described = network.described | {"template": settings.template, "band": settings.band}
        self.known: dict[str, torch.Tensor] = {}

    def present(self, pixels: numpy.ndarray, thing: str, contrast: str) -> list[Verdict]:
        other = self.settings.template.replace("{}", contrast) if contrast else "a photo"
        return self._rather(pixels, self.settings.template.replace("{}", thing), other)

    def shows(self, pixels: numpy.ndarray, prompt: str) -> list[Verdict]:
        return self._rather(pixels, prompt, "a photo")

    def _rather(self, pixels: numpy.ndarray, one: str, other: str) -> list[Verdict]:
        seen = torch.nn.functional.normalize(self.network.pictures(pixels), dim=1)
        sure = (100 * seen @ torch.stack([self._text(one), self._text(other)]).T).softmax(1)[:, 0]
        return [None if abs(p - 0.5) <= self.settings.band else p > 0.5 for p in sure.tolist()]

    def _text(self, text: str) -> torch.Tensor:
        if text not in self.known:
            self.known[text] = torch.nn.functional.normalize(self.network.texts([text]), dim=1)[0]
        return self.known[text]


def load_judge(seen: Seen, settings: JudgeSettings) -> Judge:
    """Raises UserError."""
    if ":" in settings.judge:
        judge = plugged_in(settings.judge, "present", "shows")
    else:
        judge = ZeroShot(seen.features.network(settings.judge), settings)
    seen.used[settings.judge] = judge.described
    return judge


def things_present(judge: Judge, pictures: Pictures) -> list[Verdict]:
    """Of each picture, whether what its negative prompt names is in it. Raises UserError."""
    if without := [prompt.id for prompt in pictures.prompts if not prompt.negative]:
        raise UserError(
            f"{len(without)} pictures have no negative prompt, the first is {quoted(without[0])}; name the prompt "
            f"set's column with `prompts.negative`."
        )

    def ask(pixels: numpy.ndarray, question: tuple) -> list[Verdict]:
        return judge.present(pixels, *question)

    return _asked(pictures, lambda prompt: (prompt.negative, prompt.contrast), ask)


def prompts_shown(judge: Judge, pictures: Pictures) -> list[Verdict]:
    """Of each picture, whether all that its prompt asks for is in it."""
    return _asked(pictures, lambda prompt: (prompt.prompt,), lambda pixels, key: judge.shows(pixels, *key))


def _asked(
    pictures: Pictures, key: Callable[[Prompt], tuple], ask: Callable[[numpy.ndarray, tuple], list[Verdict]]
) -> list[Verdict]:
    """A judge's verdicts, asked in batches of one question each."""
    places: dict[tuple, list[int]] = {}
    for place, prompt in enumerate(pictures.prompts):
        places.setdefault(key(prompt), []).append(place)
    verdicts: list[Verdict] = [None] * len(pictures)
    for question, those in places.items():
        for start in range(0, len(those), BATCH):
            part = those[start : start + BATCH]
            for place, verdict in zip(part, ask(numpy.stack(pictures.read(part)), question), strict=True):
                verdicts[place] = verdict
    return verdicts


def share(verdicts: Sequence[Verdict], wanted: bool, pictures: Pictures) -> Value:
    """How often the verdict is the wanted one among the decided; and what all undecided ones could make of it."""

    def of(chosen: Sequence[Verdict]) -> Value:
        decided = [verdict for verdict in chosen if verdict is not None]
        right, undecided = sum(verdict is wanted for verdict in decided), len(chosen) - len(decided)
        bounds = [right / len(chosen), (right + undecided) / len(chosen)]
        more = {"undecided": undecided, "if_all_undecided_were_wrong_or_right": bounds}
        return Value(right / len(decided) if decided else None, len(decided), wilson(right, len(decided)), more=more)

    whole = of(verdicts)
    groups = {name: of([verdicts[place] for place in places]) for name, places in grouped(pictures).items()}
    return Value(whole.value, whole.n, whole.interval, groups, whole.more)


def judged(
    seen: Seen, settings: JudgeSettings, look: Callable[[Judge, Pictures], list[Verdict]], wanted: bool
) -> Value:
    """How often a judge says the wanted thing of the pictures; where labels tell, its own errors. Raises UserError."""
    verdicts = look(load_judge(seen, settings), seen.pictures)
    value = share(verdicts, wanted, seen.pictures)
    if settings.labels:
        value.more["judge_against_labels"] = errors_by_hand(settings.labels, verdicts, seen.pictures.prompts)
    return value


def errors_by_hand(labels: str, verdicts: Sequence[Verdict], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """How often the judge is wrong where a person has looked. Raises UserError for a label of an unknown picture."""
    by_hand = dict(zip(read_prompts(labels, "id"), read_prompts(labels, "present"), strict=True))
    if odd := [value for value in by_hand.values() if value not in ("yes", "no")]:
        raise UserError(f"{quoted(labels)}: `present` is {quoted(odd[0])}; write yes or no.")
    place = {prompt.id: number for number, prompt in enumerate(prompts)}
    if unknown := [one for one in by_hand if one not in place]:
        raise UserError(f"{quoted(labels)}: there is no picture {quoted(unknown[0])}; use ids of the pictures.")
    told = [(verdicts[place[one]], said == "yes") for one, said in by_hand.items()]
    missed = [verdict is False for verdict, there in told if there and verdict is not None]
    invented = [verdict is True for verdict, there in told if not there and verdict is not None]
    return {
        "labels": len(told),
        "undecided": sum(verdict is None for verdict, _ in told),
        "missed": sum(missed) / len(missed) if missed else None,
        "invented": sum(invented) / len(invented) if invented else None,
    }
