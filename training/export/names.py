"""Tensor names as the bare network has them, whatever wrapped the network while it was trained."""

from torch import Tensor

from ..errors import UserError

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "base_layer")  # torch.compile, DDP, FSDP, peft
PREFIXES = ("base_model.model.", "model.diffusion_model.", "unet.", "transformer.")
ADAPTER = "default"  # peft's name for the only adapter


def clean_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the network's own names. Raises UserError where two tensors would get the same name."""
    cleaned: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = clean_name(key)
        if name in cleaned:
            raise UserError(f"Two tensors of the student are both called `{name}`; give a checkpoint of one network.")
        cleaned[name] = tensor
    return cleaned


def clean_name(key: str) -> str:
    """One tensor's name without the parts that torch.compile, DDP, FSDP or peft put there."""
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    if "lora_A" in parts or "lora_B" in parts:
        parts = [part for part in parts if part != ADAPTER]
    name = ".".join(parts)
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
