"""What a network says, translated once, at the border of its backbone: to the noise and to the picture, in fp32.

    x_t = alpha x0 + sigma eps        diffusion: alpha^2 + sigma^2 = 1        flow: alpha = 1 - t, sigma = t

    prediction      it says              eps                     x0
    epsilon         eps                  said                    (x_t - sigma said) / alpha
    v_prediction    alpha eps - sigma x0 alpha said + sigma x_t  alpha x_t - sigma said
    flow-           eps - x0             x_t + alpha said        x_t - sigma said

Losses, guidance and samplers know eps and x0 alone.
"""

from collections.abc import Callable

from torch import Tensor

Translation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (said, x_t, alpha, sigma)

#: {prediction: (to eps, to x0)}, all fp32; alpha and sigma broadcast against the latents [n, c, h, w].
PREDICTIONS: dict[str, tuple[Translation, Translation]] = {
    "epsilon": (
        lambda said, x_t, alpha, sigma: said,
        lambda said, x_t, alpha, sigma: (x_t - sigma * said) / alpha,
    ),
    "v_prediction": (
        lambda said, x_t, alpha, sigma: alpha * said + sigma * x_t,
        lambda said, x_t, alpha, sigma: alpha * x_t - sigma * said,
    ),
    "flow-": (  # as the nodes' presets call it: the other sign is flow+
        lambda said, x_t, alpha, sigma: x_t + alpha * said,
        lambda said, x_t, alpha, sigma: x_t - sigma * said,
    ),
}
