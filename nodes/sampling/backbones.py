"""The architectures that presets are made for, and how ComfyUI calls them."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class Backbone:
    """One architecture.

    configs: the classes of comfy.supported_models that load it.
    fallback: the preset for a model of which nothing else is known.
    alpha: the strength of NASA where the preset gives none (SNOOPI v3: 0.1 for SD 1.5, 0.2 for SD 2.1, else 0.5).
    """

    configs: tuple[str, ...]
    fallback: str
    alpha: float = 0.5


BACKBONES = {
    "SD 1.x": Backbone(("SD15",), "sd", 0.1),
    "SD 2.x": Backbone(("SD20",), "sd", 0.2),
    "SDXL": Backbone(("SDXL",), "sd"),
    "PixArt": Backbone(("PixArtAlpha",), "pixart"),
    "SD 3.x": Backbone(("SD3",), "sd35-turbo"),
    "FLUX.2": Backbone(("Flux2",), "flux2-klein"),
    "FLUX.1": Backbone(("Flux",), "flux-schnell"),
    "Z-Image": Backbone(("ZImage",), "z-image-turbo"),
    "Qwen-Image": Backbone(("QwenImage",), "qwen-image-lightning-4step"),
}


def backbone_of(model: ModelPatcher) -> str | None:
    """The name in BACKBONES of a model's architecture, a subclass counting as its nearest parent; None if not there."""
    for parent in type(model.model.model_config).__mro__:
        for name, backbone in BACKBONES.items():
            if parent.__name__ in backbone.configs:
                return name
    return None
