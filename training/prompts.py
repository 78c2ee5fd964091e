"""Prompt files, and the order in which a run reads them."""

import json
from pathlib import Path

import numpy

from .errors import UserError


def read_prompts(path: str | Path) -> list[str]:
    """All prompts of a .txt (one a line) or .jsonl (an object with `prompt`, or a string, a line) file, in its order.

    Blank lines are left out. Raises UserError for a missing, empty or malformed file.
    """
    path = Path(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"Cannot read the prompt file {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The prompt file {path} is not UTF-8 text; save it as UTF-8.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line]
    if path.suffix == ".jsonl":
        prompts = [_from_json(path, number, line) for number, line in numbered]
    elif path.suffix == ".txt":
        prompts = [line for _, line in numbered]
    else:
        raise UserError(f"The prompt file {path} must end in .txt (one prompt a line) or .jsonl (key `prompt`).")
    if not prompts:
        raise UserError(f"The prompt file {path} holds no prompt; write at least one, one a line.")
    return prompts


def _from_json(path: Path, number: int, line: str) -> str:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        raise UserError(f"{path}, line {number}: not valid JSON.") from None
    prompt = entry.get("prompt") if isinstance(entry, dict) else entry
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f'{path}, line {number}: no prompt; write {{"prompt": "a photo of a pet"}}.')
    return prompt.strip()


class PromptOrder:
    """A seeded permutation for every pass, addressed by position: a run resumes exactly from its position alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._epoch, self._permutation = -1, numpy.empty(0, dtype=int)

    def batch(self, position: int, size: int) -> list[int]:
        """Indices of the prompts at [position, position + size) of the endless shuffled stream."""
        return [self._at(place) for place in range(position, position + size)]

    def _at(self, place: int) -> int:
        epoch, offset = divmod(place, self.count)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, numpy.random.default_rng((self.seed, epoch)).permutation(self.count)
        return int(self._permutation[offset])
