"""What a negative prompt costs that names nothing in the picture: the fall of `kept`.

Against the same pictures without it, one by one (same id, same noise), over those that the judge decides in both.
"""

from ...recipe.schema import REQUIRED, Name, setting
from ..intervals import of_mean
from ..judges import JudgeSettings, load_judge, prompts_shown
from . import Seen, Value


class Settings(JudgeSettings):
    against: Name = setting(REQUIRED, "the variant without a negative prompt")


def score(seen: Seen, settings: Settings) -> dict[str, Value]:
    without = seen.variant(settings.against)
    if without.folder == seen.pictures.folder:
        return {}
    judge = load_judge(seen, settings)
    before, after = (prompts_shown(judge, pictures) for pictures in (without, seen.pictures))
    falls = [
        float(one) - float(other)
        for one, other in zip(before, after, strict=True)
        if one is not None and other is not None
    ]
    value = sum(falls) / len(falls) if falls else None
    return {"harm": Value(value, len(falls), of_mean(falls), more={"against": settings.against})}
