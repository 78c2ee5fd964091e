"""The list of a preset for another size of picture, or for another number of steps."""

import math

from .preset import Preset, changed

LCM_STEPS = 50  # the timesteps that LCMScheduler picks from


def for_size(preset: Preset, pixels: float | None) -> Preset:
    """`preset` with the list for a picture of so many pixels, if its list depends on that; None for its resolution."""
    if not isinstance(preset.shift, str) or pixels is None or pixels == _pixels(preset):
        return preset
    timesteps = _shifted(preset.shift, len(preset.timesteps), pixels)
    return changed(preset, f"The preset {preset.name}", timesteps=timesteps)


def with_steps(preset: Preset, count: int, pixels: float | None = None) -> Preset:
    """`preset` in `count` steps, as its authors' scheduler makes the list; 0 for the steps it lists.

    A published list that no formula gives is filled in evenly between its own steps. Of a model of several stages, the
    steps are divided as before.

    Args:
        pixels: of the picture, for a list that depends on its size.

    Raises:
        ValueError: there are not as many timesteps.
    """
    own = len(preset.timesteps)
    if count in (0, own):
        return for_size(preset, pixels)
    lists = {}
    if preset.shift is not None:
        lists["timesteps"] = _shifted(preset.shift, count, pixels or _pixels(preset))
    elif preset.is_flow:
        lists["timesteps"] = _between(preset.timesteps, count, 0.0)
    elif preset.levels:
        for name in ("timesteps", "levels"):
            lists[name] = tuple(round(value) for value in _between(getattr(preset, name), count, -1.0))
    else:
        lists["timesteps"] = _spaced(preset, count)
    if preset.stage:
        lists["stage"] = tuple(round(step * count / own) for step in preset.stage)
    return changed(preset, f"{count} steps of the preset {preset.name}", **lists)


def _pixels(preset: Preset) -> int:
    return (preset.resolution or 1024) ** 2


def _shifted(shift: float | str, count: int, pixels: int) -> tuple[float, ...]:
    """Even steps from 1 to 0, moved towards the noise: s * t / (1 + (s - 1) * t), in thousandths."""
    if shift == "flux1":
        shift = math.exp(0.5 + (1.15 - 0.5) * (pixels / 256 - 256) / (4096 - 256))  # FluxPipeline, calculate_shift
    elif shift == "flux2":
        shift = math.exp(_flux2_mu(round(pixels / 256), count))
    even = [1 - step / count for step in range(count)]
    return (1000.0, *(1000 * shift * t / (1 + (shift - 1) * t) for t in even[1:]))  # the first to the last digit


def _flux2_mu(tokens: int, count: int) -> float:
    """The shift's logarithm for FLUX.2, fitted by its authors for 10 and 200 steps (compute_empirical_mu)."""
    for_200 = 0.00016927 * tokens + 0.45666666
    for_10 = 8.73809524e-05 * tokens + 1.89833333
    return for_200 if tokens > 4300 else for_200 + (for_10 - for_200) * (200 - count) / 190


def _spaced(preset: Preset, count: int) -> tuple[int, ...]:
    first = preset.timesteps[0]
    if preset.spacing == "lcm":
        listed = [round((first + 1) * step / LCM_STEPS) - 1 for step in range(LCM_STEPS, 0, -1)]
        return tuple(listed[int(step * LCM_STEPS / count)] for step in range(count))
    return tuple(round((first + 1) * (1 - step / count)) - 1 for step in range(count))


def _between(listed: tuple[float, ...], count: int, end: float) -> tuple[float, ...]:
    """The numbers at `count` even places along a list that goes on to `end`."""
    ends, places = (*listed, end), [step * len(listed) / count for step in range(count)]
    return tuple(ends[int(at)] + (at - int(at)) * (ends[int(at) + 1] - ends[int(at)]) for at in places)
