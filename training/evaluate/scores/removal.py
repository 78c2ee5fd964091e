"""How often the unwanted thing is absent: the paper's removal rate, judged by a machine (the paper: by people)."""

from ..judges import JudgeSettings, judged, things_present
from . import Seen, Value


class Settings(JudgeSettings):
    pass


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    return {"removal": judged(seen, settings, things_present, False)}
