"""How often a run sees each of its prompts, and what is said where that is far too often."""

from collections.abc import Sequence

from ..errors import UserError
from ..recipe.config import Config
from .read import STREAM, read_prompts

TOO_OFTEN = 1000  # times; the paper's runs see a prompt one to three times, each of NASA-T's 10,000 negatives 160 times
LISTS = "DiffusionDB's metadata.parquet has 1.5 million"
NEGATIVE_LISTS = "the dataset mikeogezi/negopt_full has 256,000"


def few_prompts(config: Config, prompts: Sequence[str], negatives: Sequence[str]) -> list[str]:
    """A sentence for each of the two lists that is far too short for the run; `negatives` is empty without NASA-T."""
    samples = config.batch_size * (config.lora.initial_steps + config.steps)
    lists = [(config.prompts, len(prompts), LISTS)]
    if config.nasa:
        lists.append((config.nasa.prompts, len(negatives), NEGATIVE_LISTS))
    return [
        f"{source} holds {count} prompts for a run of {samples:,} samples, which sees each "
        f"{samples // count:,} times: far too few for real use; give a longer list "
        f"({longer}; part 2 of training/README.md)."
        for source, count, longer in lists
        if count and samples // count > TOO_OFTEN
    ]


def few_prompts_before_a_run(config: Config) -> list[str]:
    """The same from the files; a list that is not there yet gets a sentence too, one on the hub is not fetched."""

    def read(source: str, *options) -> list[str]:
        return [] if source.startswith(STREAM) else read_prompts(source, *options)

    try:
        prompts = read(config.prompts, config.prompt_column, config.skip_bad_prompts)
        return few_prompts(config, prompts, read(config.nasa.prompts) if config.nasa else [])
    except UserError as error:
        return [str(error)]
