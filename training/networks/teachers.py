"""Both teachers on one network: adapter off it is the frozen teacher, adapter on the LoRA teacher."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..recipe.config import Lora
from .adapter import adapter_state, add_adapter, load_adapter
from .text import Text

Predict = Callable[[nn.Module, Tensor, Tensor, Text], Tensor]


class Teachers:
    """`network` is a PeftModel whose only trainable weights are the adapter's, in fp32.

    predict(network, x_t, t, text) -> eps is the backbone's own. The adapter is on except inside `frozen`, which runs
    without a graph: switching it off between a LoRA forward and its backward would silently drop the gradient.

    `trained` is what the LoRA's update calls: `network`, or its wrapper for several processes. Calls without a graph
    go to `network` itself.
    """

    def __init__(self, network: nn.Module, settings: Lora, predict: Predict):
        self.network = add_adapter(network, settings)
        self.trained: nn.Module = self.network
        self.predict = predict

    @torch.no_grad()
    def frozen(self, x_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """eps of the teacher, without a graph."""
        with self.network.disable_adapter():
            return self.predict(self.network, x_t, t, text)

    @torch.no_grad()
    def lora(self, x_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """eps of the LoRA teacher, without a graph."""
        return self.predict(self.network, x_t, t, text)

    def lora_in_training(self, x_t: Tensor, t: Tensor, text: Text) -> Tensor:
        """eps of the LoRA teacher, with a graph for its own update."""
        return self.predict(self.trained, x_t, t, text)

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's weights, fp32."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def state(self) -> dict[str, Tensor]:
        return adapter_state(self.network)

    def load(self, state: dict[str, Tensor]) -> None:
        load_adapter(self.network, state)
