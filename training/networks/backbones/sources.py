"""Where a teacher's parts come from: a diffusers folder, a hub name, or a single .safetensors file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from ...errors import UserError, quoted
from ...recipe.shipped import remedy

SAFELY = {"use_safetensors": True, "output_loading_info": True}
#: In the names of what only patches a model: LoRA, LoKr, LoHa, OFT, GLoRA, DoRA, whole differences of weights.
LORA = r"(^|\.)(lora_(down|up|A|B)|lokr_w|hada_w|oft_(blocks|diag)|dora_scale|diff(_b)?$)|^lora_(unet|te\d?)_"
IS_LORA = "is a LoRA, which only patches a model; give the model that it was made for, or one it is merged into."
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_config.json", "adapter_model.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_source(source: str) -> None:
    """Refuses at once what looks like a local path and is not there, instead of asking the hub for it."""
    path = Path(source)
    if path.is_dir() and any((path / name).is_file() for name in LORA_FILES):
        raise UserError(f"The teacher {quoted(source)} {IS_LORA}")
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return
    name = quoted(source)
    if path.is_file():
        raise UserError(f"The teacher {name} is a file, but no .safetensors; save it as one, pickles are not read.")
    beside = path.parts and Path(path.parts[0]).is_dir()  # runs/teacher, where runs/ is here
    if not is_hub_name(source) or path.suffix in (".safetensors", ".ckpt", ".pt", ".pth") or beside:
        raise UserError(
            f"There is no teacher {name}; give a diffusers folder, a .safetensors file or a hub name{remedy(source)}."
        )


def is_hub_name(source: str) -> bool:
    """Whether a hub could have a model of that name; a path may look like one."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source, re.ASCII) is not None


def is_single_file(source: str) -> bool:
    return Path(source).suffix == ".safetensors"


def load_part(load: Callable[..., Any], source: str, folder: str, **options: Any) -> Any:
    """load(source, subfolder=folder): one part of a diffusers folder or hub model; any failure becomes a sentence."""
    local = Path(source)
    if local.exists() and not (local / folder).is_dir():
        beside = ", ".join(sorted(path.name for path in local.iterdir() if path.is_dir())) if local.is_dir() else ""
        raise UserError(
            f"The teacher {quoted(source)} has no folder {folder}/ (it has {quoted(beside or 'none')}); give a "
            f"diffusers folder of this `backbone`, as save_pretrained writes{remedy(source)}."
        )
    return load_any(load, source, f"{folder} of the teacher", subfolder=folder, **options)


def load_config(kind: type, source: str, folder: str) -> dict[str, Any]:
    """The config.json of a part. Raises UserError."""
    config = load_part(kind.load_config, source, folder)
    if not isinstance(config, dict):
        raise UserError(f"The config of {folder} of the teacher {quoted(source)} is no JSON object; copy it again.")
    return dict(config)


def load_any(load: Callable[..., Any], source: str, role: str, **options: Any) -> Any:
    """load(source, **options), by diffusers or transformers. role: what it is, "clip.model". Raises UserError."""
    try:
        return load(source, **options)
    except Exception as error:  # the libraries pass on whatever their many readers raise
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise
        folder = Path(source) / options.get("subfolder", "")
        raise UserError(f"Cannot load {role} {quoted(source)}: {_remedy(folder, error)} ({quoted(error)}).") from None


def load_tokenizer(kind: type, source: str, folder: str = "", role: str = "") -> Any:
    """A tokenizer, of a teacher or, with `role`, of a folder or hub model of its own. Raises UserError.

    transformers makes an empty one of a folder without files, and runs no code from a folder only where it is told so.
    """
    safely = {"trust_remote_code": False} if kind is AutoTokenizer else {}
    if folder:
        tokenizer = load_part(kind.from_pretrained, source, folder, **safely)
    else:
        tokenizer = load_any(kind.from_pretrained, source, role, **safely)
    try:
        read = tokenizer(["red", "sky"], padding="max_length", max_length=8, truncation=True).input_ids
    except Exception as error:  # its own settings may be of another kind
        raise UserError(
            f"Cannot use the tokenizer of {quoted(source)} ({quoted(error)}); copy its files again."
        ) from None
    if read[0] == read[1]:
        raise UserError(f"The tokenizer of {quoted(source)} reads every prompt alike; copy its files again.")
    return tokenizer


def _remedy(folder: Path, error: Exception) -> str:
    if not folder.exists():
        return "no such folder, nor a model that the hub has and can be reached for"
    found = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
    if found and not list(folder.glob("*.safetensors")):
        return f"{quoted(found[0])} is a pickle, which is not read; save it as .safetensors"
    if re.search(r"shape|mismatch", str(error)):
        return "its config.json and its weights are no pair"
    return "a file is damaged or missing, copy it again"


def load_network(kind: type, source: str, folder: str, **options: Any) -> nn.Module:
    """A network of that class, from .safetensors alone, with all its weights in the files. Raises UserError.

    Both libraries would fill in random numbers for a weight that is missing.
    """
    network, told = load_part(kind.from_pretrained, source, folder, **SAFELY, **options)
    return checked(network, told["missing_keys"], f"{folder} of the teacher {quoted(source)}")


def load_model(kind: type, source: str, role: str) -> nn.Module:
    """The same for one network that is a folder or hub model of its own. role: the setting that names it."""
    network, told = load_any(kind.from_pretrained, source, role, **SAFELY)
    return checked(network, told["missing_keys"], f"{role} {quoted(source)}")


def checked(network: nn.Module, missing: Any, name: str) -> nn.Module:
    """`network` itself. Raises UserError where a weight was missing, or is NaN or infinite."""
    if missing := sorted(missing):
        raise UserError(
            f"Cannot load {name}: {len(missing)} of its weights are missing, such as {quoted(missing[0])}; "
            f"copy the files again."
        )
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"Cannot use {name}: {quoted(key)} holds NaN or infinite numbers; get another copy.")
    return network


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a model's .safetensors file, on the CPU. Raises UserError, also for a LoRA."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error)}; the file is missing or damaged.") from None
    if any(re.search(LORA, name) for name in tensors):
        raise UserError(f"The teacher {quoted(path)} {IS_LORA}")
    return tensors


def fill(network: nn.Module, convert: Callable[[], dict[str, Tensor]], source: str) -> nn.Module:
    """Strictly loads what `convert` makes of a single file into `network`, in its own dtype. Raises UserError.

    Either fails where the file is of another family or size.
    """
    try:
        network.load_state_dict(convert(), strict=True)
    except Exception as error:  # diffusers' converters stumble over any tensor that is not there
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = quoted(lines[min(1, len(lines) - 1)] if lines else error)
        raise UserError(
            f"{quoted(source)} does not fit {type(network).__name__} as its base model has it ({reason}); set "
            f"`teacher_parts` to a diffusers folder of the model that it was made from."
        ) from None
    return checked(network, [], quoted(source))
