"""The architectures that presets are made for, and how ComfyUI calls them."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class Backbone:
    """One architecture.

    configs: the classes of comfy.supported_models that load it; a ComfyUI may lack some.
    fallback: the preset for a model of which nothing else is known: the few-step list that suits most of them. It is
        never one step, which only a model made for it survives.
    alpha: the strength of NASA where the preset gives none (SNOOPI v3: 0.1 for SD 1.5, 0.2 for SD 2.1, else 0.5); None
        for what suits its kind of attention.
    refuses_bases: whether `auto` refuses a published model that needs many steps and CFG; else it runs and says so.
    """

    configs: tuple[str, ...]
    fallback: str
    alpha: float | None = None
    refuses_bases: bool = True


BACKBONES = {
    "SD 1.x": Backbone(("SD15",), "few-step", 0.1),
    "SD 2.x": Backbone(("SD20",), "few-step", 0.2),
    "SDXL": Backbone(("SDXL",), "few-step"),
    "PixArt": Backbone(("PixArtAlpha",), "pixart-lcm"),
    "SD 3.x": Backbone(("SD3",), "sd35-turbo"),
    "FLUX.2": Backbone(("Flux2",), "flux2-klein"),
    "FLUX.1": Backbone(("Flux",), "flux-dev-turbo"),
    "Z-Image": Backbone(("ZImage",), "z-image-turbo", 0.5),
    "Qwen-Image": Backbone(("QwenImage",), "qwen-image-lightning-8step"),
    "Anima": Backbone(("Anima",), "anima-turbo", refuses_bases=False),
    "Wan": Backbone(("WAN21_T2V",), "wan21-lightx2v", refuses_bases=False),
    "LTX": Backbone(("LTXV",), "ltx2-distilled", refuses_bases=False),
    "Krea 2": Backbone(("Krea2",), "krea2-turbo"),
    "Ernie-Image": Backbone(("ErnieImage",), "ernie-image-turbo"),
    "Boogu": Backbone(("Boogu",), "boogu-turbo"),
    "Mage-Flow": Backbone(("MageFlow",), "mage-flow-turbo"),
    "Lens": Backbone(("Lens",), "lens-turbo"),
    "HiDream": Backbone(("HiDream",), "hidream-dev"),
    "MiniMax H3": Backbone(("MiniMaxH3",), "minimax-h3-turbo"),
}

#: The fallback of a FLUX.2 whose network reads a guidance scale, which tells dev from klein.
FLUX2_DEV = "flux2-dev-turbo"


def backbone_of(model: ModelPatcher) -> str | None:
    """The name in BACKBONES of a model's architecture, a subclass counting as its nearest parent; None if not there."""
    for parent in type(model.model.model_config).__mro__:
        for name, backbone in BACKBONES.items():
            if parent.__name__ in backbone.configs:
                return name
    return None


def reads_guidance(model: ModelPatcher) -> bool:
    """Whether the network reads a guidance scale: FLUX.1 dev and FLUX.2 dev do, schnell and klein do not."""
    return bool(model.model.model_config.unet_config.get("guidance_embed", False))
