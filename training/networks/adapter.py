"""LoRA adapters on a frozen network, by peft: the LoRA teacher, and a student that is a LoRA."""

import peft
import torch
from torch import Tensor, nn

from ..errors import UserError, quoted
from ..recipe.config import Adapter, Lora


def add_adapter(network: nn.Module, settings: Adapter | Lora) -> peft.PeftModel:
    """`network`, frozen, with an fp32 adapter, the only weights that train. Raises UserError for unknown targets."""
    lora = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=target_layers(network, settings.targets),
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
    )
    return peft.get_peft_model(network.requires_grad_(False), lora, autocast_adapter_dtype=True)


def adapter_state(network: peft.PeftModel) -> dict[str, Tensor]:
    return peft.get_peft_model_state_dict(network)


def load_adapter(network: peft.PeftModel, state: dict[str, Tensor]) -> None:
    peft.set_peft_model_state_dict(network, state)


def target_layers(network: nn.Module, targets: list[str] | str) -> list[str]:
    """Names for peft, each of them matching at least one layer; raises UserError."""
    layers = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if targets == "all-linear-and-conv":
        return layers
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in layers):
            endings = sorted({name.split(".")[-1] for name in layers} - set("0123456789"))
            known = quoted(", ".join(endings))
            raise UserError(f"lora.targets: no layer ends in `{quoted(target)}`; this network has {known}.")
    return targets


def halve_frozen_weights(network: nn.Module) -> None:
    """bf16 for matrices and convolutions, which autocast would cast anew in every forward; norms stay fp32."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(torch.bfloat16)
    for weight in network.parameters():
        if weight.dtype == torch.float32:
            weight.data = weight.data.clone()  # a single view of the mapped file would keep all of it in memory
