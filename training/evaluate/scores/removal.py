"""How often the unwanted thing is absent: the paper's removal rate, judged by a machine (the paper: by people)."""

from ..judges import JudgeSettings, errors_by_hand, load_judge, share, things_present
from . import Seen, Value


class Settings(JudgeSettings):
    pass


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    judge = load_judge(seen, settings)
    verdicts = things_present(judge, seen.pictures)
    value = share(verdicts, False, seen.pictures)
    if settings.labels:
        value.more["judge_against_labels"] = errors_by_hand(settings.labels, verdicts, seen.pictures.prompts)
    return {"removal": value}
