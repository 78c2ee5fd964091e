"""How often all that the prompt asks for is there: what belongs beside a removal rate, and accuracy where nothing is
to be removed."""

from ..judges import JudgeSettings, errors_by_hand, load_judge, prompts_shown, share
from . import Seen, Value


class Settings(JudgeSettings):
    pass


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    judge = load_judge(seen, settings)
    verdicts = prompts_shown(judge, seen.pictures)
    value = share(verdicts, True, seen.pictures)
    if settings.labels:
        value.more["judge_against_labels"] = errors_by_hand(settings.labels, verdicts, seen.pictures.prompts)
    return {"kept": value}
