"""What a file or folder is: `python -m training inspect FILE`. Reads headers, never weights; never unpickles."""

import json
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, quoted
from .headers import Shapes, read_header, read_pickle, tensor_lines, weight

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def describe(path: str | Path) -> str:
    """A few lines on layout, family, parameters, dtype and metadata, ours explained.

    path: a .safetensors file, a pickled state dict (read with weights_only), a diffusers folder, or a run or checkpoint
    folder of this trainer. Raises UserError, one sentence, for anything else, and for a damaged file.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"There is nothing at {quoted(path)}; give a .safetensors file, a diffusers folder or a run folder."
        )
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".safetensors":
        shapes, metadata = read_header(path)
    elif path.suffix in PICKLES:
        shapes, metadata = read_pickle(path), {}
    else:
        raise UserError(f"{quoted(path)} is no model file; known are .safetensors and {', '.join(PICKLES)}.")
    lines = [f"file        {path} ({_bytes(path.stat().st_size)})", *tensor_lines(shapes), *told(metadata)]
    return "\n".join(map(_printable, lines))


def told(metadata: dict[str, str]) -> list[str]:
    """The metadata; ours as instructions."""
    if not metadata:
        return ["metadata    none"]
    ours = {key.removeprefix("snoopi."): value for key, value in metadata.items() if key.startswith("snoopi.")}
    lines = []
    if "start_timestep" in ours:
        flow = ours.get("prediction") == "flow-"
        unit = ours.get("start_noise") != "vp" and not flow
        noise = "the noise itself (unit)" if unit else "the noise times sigma of that timestep (vp)"
        noise = "the noise times that timestep / 1000 (flow)" if flow else noise
        steps = f"one step from timestep {ours['start_timestep']}"
        if listed := ours.get("timesteps", "").split(",")[1:]:
            steps = f"{1 + len(listed)} steps, new noise between them, at timesteps {ours['timesteps']}"
        predicts = ours.get("prediction", "epsilon")
        lines = [
            f"sampling    {steps}, CFG 1; the network receives {noise} and predicts {predicts}",
            f"            in ComfyUI: SNOOPI One-Step Sampler, preset auto ({ours.get('preset', 'sd')}, from there)",
        ]
        stock = "does the same" if ours["start_timestep"] == "999" and unit else "starts elsewhere"
        lines += [] if listed else [f"            a stock KSampler, 1 step, CFG 1, {stock}"]
    if "alpha" in ours:
        lines.append(f"            NASA: alpha {ours['alpha']} to begin with")
    if "kappa_min" in ours:
        lines.append(
            f"training    PG-SB, kappa {ours['kappa_min']} to {ours.get('kappa_max')}, from {ours.get('base_model')}"
        )
        lines.append(f"            licence of the base: {ours.get('base_model_license', 'not told')}")
        lines.append(f"            config {ours.get('config_sha256', 'not told')[:16]}")
    lines += [f"merged      {share}" for share in merged_of(metadata)]
    others = {key: value for key, value in sorted(metadata.items()) if not key.startswith("snoopi.")}
    lines += [f"metadata    {key}: {value}" for key, value in others.items()]
    return lines


def merged_of(metadata: dict[str, str]) -> list[str]:
    """ "0.5 of a.safetensors" for each student that a file is the mean of."""
    try:
        record = json.loads(metadata.get("snoopi.merged", "[]"))
        return [f"{part['weight']:g} of {part['file']}" for part in record]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _folder(path: Path) -> str:
    if (path / "model_index.json").is_file() or any(
        (path / part / "config.json").is_file() for part in ("unet", "transformer")
    ):
        return _diffusers(path)
    if (path / "state.json").is_file():
        return _checkpoint(path)
    if (path / "config.yaml").is_file():
        return _run(path)
    if (path / "index.json").is_file() and list(path.glob("shard-*.safetensors")):
        index = _json(path / "index.json")
        return f"folder      {path}\nlayout      encoded prompts: {index.get('prompts')} by {index.get('text_encoder')}"
    if (path / "config.json").is_file():
        return "\n".join([f"folder      {path}", *_part(path, "one diffusers or transformers model")])
    raise UserError(
        f"{quoted(path)} is neither a diffusers folder nor a run, a checkpoint or encoded prompts of this trainer."
    )


def _diffusers(path: Path) -> str:
    parts = [part for part in sorted(path.iterdir()) if (part / "config.json").is_file()]
    lines = [line for part in parts for line in _part(part, part.name)]
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        config = _json(scheduler)
        told = f"predicts {config.get('prediction_type', 'epsilon')}, {config.get('beta_schedule')}"
        if str(config.get("_class_name")).startswith("FlowMatch"):
            told = f"flow matching, shift {config.get('shift', 1)}"
        lines.append(f"{'scheduler':<17} {told}")
    return "\n".join([f"folder      {path}", "layout      diffusers folder", *lines])


def _part(part: Path, name: str) -> list[str]:
    config = _json(part / "config.json")
    kind = config.get("_class_name") or ", ".join(config.get("architectures") or ["?"])
    shapes: Shapes = {}
    for file in sorted(part.glob("*.safetensors")):
        shapes |= read_header(file)[0]
    return [f"{name:<17} {kind}; {', '.join(weight(shapes)) if shapes else 'no .safetensors weights here'}"]


def _run(path: Path) -> str:
    config = _yaml(path / "config.yaml")
    lines = [f"folder      {path}", "layout      run of this trainer", *_recipe(config)]
    found = sorted(path.glob("checkpoints/step-*"), key=lambda folder: folder.name)
    lines += [f"checkpoint  {folder.name}" for folder in found] or ["checkpoint  none yet"]
    return "\n".join(lines)


def _checkpoint(path: Path) -> str:
    state = _json(path / "state.json")
    lines = [f"folder      {path}", f"layout      checkpoint of this trainer, step {state.get('step')}"]
    if (path.parent.parent / "config.yaml").is_file():
        lines += _recipe(_yaml(path.parent.parent / "config.yaml"))
    files = state.get("files")
    for name, size in files.items() if isinstance(files, dict) else ():
        file = path / Path(name).name  # whatever it says, of this folder
        told = "missing or cut short"
        if file.is_file() and file.stat().st_size == size:
            told = ", ".join(weight(read_header(file)[0])) if file.suffix == ".safetensors" else _bytes(size)
        lines.append(f"{file.stem:<17} {told}")
    return "\n".join(lines)


def _recipe(config: dict[str, Any]) -> list[str]:
    start = config.get("start") or {}
    steps = "one step" if start.get("steps", 1) == 1 else f"{start['steps']} steps"
    return [
        f"teacher     {config.get('teacher')}",
        f"sampling    {steps} from timestep {start.get('timestep')}, {start.get('noise')} noise, CFG 1",
        f"training    PG-SB, kappa {config.get('kappa')}, {config.get('steps')} steps of {config.get('batch_size')}",
    ]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error)}.") from None
    if not isinstance(content, dict):
        raise UserError(f"Cannot read {quoted(path)}: it is no JSON object.")
    return content


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error)}.") from None
    if not isinstance(content, dict):
        raise UserError(f"Cannot read {quoted(path)}: it is no YAML mapping.")
    return content


def _printable(line: str) -> str:
    """One line of bounded length without control characters, whatever a file says of itself."""
    text = "".join(letter if letter.isprintable() else " " for letter in line)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


def _bytes(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
