"""How often a run sees each of its prompts, and what is said where that is far too often."""

from ..errors import UserError
from .read import STREAM, read_prompts

TOO_OFTEN = 1000  # times; the paper's runs see a prompt one to three times, each of NASA-T's 10,000 negatives 160 times
LISTS = "DiffusionDB's metadata.parquet has 1.5 million"
NEGATIVE_LISTS = "the dataset mikeogezi/negopt_full has 256,000"


def few_prompts(source: str, count: int, samples: int, longer: str) -> str | None:
    """One sentence about a list of `count` prompts that is far too short for a run of `samples`; else None.

    longer: what the sentence names instead, LISTS or NEGATIVE_LISTS.
    """
    if not count or samples // count <= TOO_OFTEN:
        return None
    return (
        f"{source} holds {count} prompts for a run of {samples:,} samples, which sees each {samples // count:,} times: "
        f"far too few for real use; give a longer list ({longer}; part 2 of training/README.md)."
    )


def few_prompts_before_a_run(
    source: str, samples: int, longer: str, column: str | None = None, skip_bad: bool = False
) -> str | None:
    """The same from the file; one that cannot be read gets a sentence too, a list on the hub is not fetched."""
    try:
        count = 0 if source.startswith(STREAM) else len(read_prompts(source, column, skip_bad))
    except UserError as error:
        return str(error)
    return few_prompts(source, count, samples, longer)
