"""The list of blocks a user types, such as `in4-8, mid, out3-5`: which layers of a model are steered."""

import re

from ..quoting import quoted

ALL = "all"
ENTRY = re.compile(r"([a-z]*?)(\d+)?(?:-(\d+))?")


def chosen_blocks(text: str, names: list[str]) -> list[str]:
    """The names that `text` chooses: names and ranges of them with commas between, or `all`.

    Args:
        names: the blocks there are, in the model's order, such as in1, in2, in4, mid, out3 or 0, 1, 2.

    Raises:
        ValueError: an entry chooses nothing; the sentence names it and lists what there is.
    """
    entries = [entry for entry in re.split(r"[,\s]+", text.strip().lower()) if entry]
    if entries in ([], [ALL]):
        return names
    chosen = set()
    for entry in entries:
        match = ENTRY.fullmatch(entry)
        found = _between(names, *match.groups()) if match else []
        if not found:
            raise ValueError(
                f"blocks names {quoted(entry)}, which is not a block with cross-attention of this model: "
                f"choose from {compact(names)}, or write all."
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def compact(names: list[str]) -> str:
    """The names as a user types them, runs of numbers written as ranges."""
    runs: list[list[str]] = []
    for name in names:
        prefix, number = _split(name)
        before = _split(runs[-1][-1]) if runs else None
        if before and number is not None and before == (prefix, number - 1):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{_split(run[-1])[1]}" for run in runs)


def _between(names: list[str], prefix: str, first: str | None, last: str | None) -> list[str]:
    """Names with this prefix from first to last; none if the range reaches past the model's last block."""
    if first is None:
        return [name for name in names if name == prefix and last is None]
    low, high = int(first), int(last or first)
    numbers = {number: name for name in names for start, number in [_split(name)] if start == prefix}
    numbers.pop(None, None)
    if not numbers or high > max(numbers):
        return []
    return [name for number, name in numbers.items() if low <= number <= high]


def _split(name: str) -> tuple[str, int | None]:
    prefix = name.rstrip("0123456789")
    return prefix, int(name[len(prefix) :]) if len(name) > len(prefix) else None
