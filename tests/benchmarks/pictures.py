"""One picture of each way to sample that the benchmark of NASA compares. ComfyUI must be started before the import."""

from itertools import count
from types import ModuleType

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from benchmarks.network import Network
from benchmarks.networks import text

ALPHA = 0.5
CFG_SCALE = 4.0
VARIANTS = ("plain", "nasa", "nasa_first", "cfg")


class Pictures:
    """The pictures of one network at one size; its models are what a person's graph would hold.

    Args:
        payload: the pack's nodes.guidance.payload.
        tokens: of the positive and the negative text.
        rule: the patch's.
    """

    def __init__(
        self, payload: ModuleType, model: ModelPatcher, network: Network, pixels: int, tokens: tuple, rule: str
    ):
        self.payload, self.model, self.network, self.pixels = payload, model, network, pixels
        self.seeds, self.rule = count(2), rule
        self.negative_tokens = tokens[1]
        self.positive, self.negative = text(network, tokens[0], seed=0), text(network, tokens[1], seed=1)
        self.steered = payload.patch(model, self.negative, ALPHA, rule=rule)

    def model_of(self, variant: str) -> ModelPatcher:
        """The model a variant samples with, loaded; for nasa_first one with a negative that was never used."""
        model = {"nasa": self.steered, "nasa_first": None}.get(variant, self.model)
        if model is None:
            unseen = text(self.network, self.negative_tokens, next(self.seeds))
            model = self.payload.patch(self.model, unseen, ALPHA, rule=self.rule)
        comfy.model_management.load_models_gpu([model])
        return model

    def sample(self, variant: str, model: ModelPatcher, steps: int = 1) -> torch.Tensor:
        """Sample with what model_of gave; latents as the network has them."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(CFG_SCALE if variant == "cfg" else 1.0)
        latent = self.network.latent(self.pixels)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=0)
