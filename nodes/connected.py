"""Checks of inputs that come over a link or from an API client, and so may be anything whatever their type says."""

from comfy.model_patcher import ModelPatcher

from .quoting import as_written

MOST_STEPS = 50


def check_model(model: object) -> None:
    """Raise ValueError, one sentence, unless it is a model."""
    if not isinstance(model, ModelPatcher):
        what = "empty" if model is None else f"no model but of type {type(model).__name__}"
        raise ValueError(f"The input model is {what}: connect a node that loads a model to it.")


def check_numbers(**inputs: object) -> None:
    """Raise ValueError, one sentence that names the input, unless all are numbers."""
    for name, value in inputs.items():
        try:
            number = None if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # a whole number of 400 digits, a whole tensor
            number = None
        if number is None:
            raise ValueError(f"{name} is {as_written(value)}: give it a number.")


def no_numbers(**inputs: object) -> str | None:
    """`check_numbers` before the run, as a sentence: of the inputs that are there; None is what comes over a link."""
    try:
        check_numbers(**{name: value for name, value in inputs.items() if value is not None})
    except ValueError as error:
        return str(error)
    return None


def check_seed(seed: float) -> None:
    """Raise ValueError, one sentence, unless it is a whole number of 64 bits."""
    if not 0 <= seed < 1 << 64 or int(seed) != seed:
        raise ValueError(f"seed is {as_written(seed)}: give a whole number from 0 to {(1 << 64) - 1}.")


def check_steps(steps: float) -> None:
    """Raise ValueError, one sentence, unless it is a whole number of steps, or 0."""
    if not 0 <= steps <= MOST_STEPS or int(steps) != steps:
        raise ValueError(f"steps is {as_written(steps)}: give a whole number from 0 (the preset's) to {MOST_STEPS}.")
