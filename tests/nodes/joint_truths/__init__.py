"""Whole networks of joint attention written out by hand, with a negative in them and every softmax as a matrix.

Their linear layers and norms are ComfyUI's modules; what flows between them is written here.
"""

from contextlib import contextmanager
from types import MethodType

from families import ALL

from .auraflow import auraflow
from .chroma import chroma
from .ernie import ernie
from .explicit import Steer as Steer
from .flux import flux
from .hidream_o1 import hidream_o1
from .hunyuan_video import hunyuan_video
from .ideogram4 import ideogram4
from .joyimage import joyimage
from .krea2 import krea2
from .lens import lens
from .lumina import lumina
from .mochi import mochi
from .omnigen2 import omnigen2
from .qwen_image import qwen_image
from .sd3 import sd3

NETWORKS = {
    "flux": flux, "sd3": sd3, "omnigen2": omnigen2, "qwen_image": qwen_image, "lumina": lumina, "lens": lens,
    "joyimage": joyimage, "ernie": ernie, "mochi": mochi, "krea2": krea2, "chroma": chroma,
    "hunyuan_video": hunyuan_video, "auraflow": auraflow, "ideogram4": ideogram4,
    "hidream_o1": hidream_o1,
}  # fmt: skip


@contextmanager
def by_hand(name, model, steer):
    """The model's network replaced by the one written out here; every row of every call is steered."""
    network, written = model.model.diffusion_model, NETWORKS[ALL[name].layout]

    def forward(network, x, timestep, context, **kwargs):
        return written(network, steer, x, timestep, context, **kwargs)

    network.forward = MethodType(forward, network)
    try:
        yield
    finally:
        del network.forward
