"""Both teachers on one network: adapter off it is the frozen teacher, adapter on the LoRA teacher."""

from collections.abc import Callable

import peft
import torch
from torch import Tensor, nn

from .config import Lora
from .errors import UserError

Predict = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


class Teachers:
    """`network` is a PeftModel whose only trainable weights are the adapter's, in fp32.

    predict(network, x_t, t, text) -> eps is the backbone's own. The adapter is on except inside `frozen`, which runs
    without a graph: switching it off between a LoRA forward and its backward would silently drop the gradient.
    """

    def __init__(self, network: nn.Module, settings: Lora, predict: Predict):
        targets = _targets(network, settings.targets)
        lora = peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, init_lora_weights="gaussian"
        )
        self.network = peft.get_peft_model(network.requires_grad_(False), lora, autocast_adapter_dtype=True)
        self.predict = predict

    @torch.no_grad()
    def frozen(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """eps of the teacher, without a graph."""
        with self.network.disable_adapter():
            return self.predict(self.network, x_t, t, text)

    def lora(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """eps of the LoRA teacher."""
        return self.predict(self.network, x_t, t, text)

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's weights, fp32."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def state(self) -> dict[str, Tensor]:
        return peft.get_peft_model_state_dict(self.network)

    def load(self, state: dict[str, Tensor]) -> None:
        peft.set_peft_model_state_dict(self.network, state)


def _targets(network: nn.Module, targets: list[str] | str) -> list[str]:
    """Names for peft, each of them matching at least one layer; raises UserError."""
    layers = [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if targets == "all-linear-and-conv":
        return layers
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in layers):
            endings = sorted({name.split(".")[-1] for name in layers} - set("0123456789"))
            raise UserError(f"lora.targets: no layer ends in `{target}`; this network has {', '.join(endings)}.")
    return targets
