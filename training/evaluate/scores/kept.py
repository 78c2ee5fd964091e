"""How often all that the prompt asks for is there: what belongs beside a removal rate, and accuracy where nothing is
to be removed."""

from ..judges import JudgeSettings, judged, prompts_shown
from . import Seen, Value


class Settings(JudgeSettings):
    pass


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    return {"kept": judged(seen, settings, prompts_shown, True)}
