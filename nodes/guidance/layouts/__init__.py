"""One file for each attention layout: where a model's cross-attention lies and how Z- gets there.

A layout is a module with these functions:

    blocks(model)                   the cross-attention layers by the name of their block, in the model's order
    width(model)                    the width of the text encoder's embeddings
    text(model, conds, timestep)    what those layers read of a prompt, [batch, tokens, width], from ComfyUI's cond
                                    tensors of it by name; timestep is [1], in the model's own unit
    keys_values(layer, text)        K and V, each [batch, tokens, ...], as that layer attends to them
    forwards(layer)                 the modules whose forward changes while the layer is steered, and what it becomes:
                                    one gives the queries (`remember`), one takes Z+ (`steered`)
    prompt(layer)                   the same for what gives K+ (`remember_keys`) and V+ (`remember_values`), or both;
                                    only rules that weigh the prompt ask for it
    attend(nasa, q, k, v)           Z of those queries, keys and values, for the layer of a Steering, whose `handed`
                                    gives the transformer_options
    fit(layer, x, z, chunks)        x, which has 1 row or one for every row of the model's batch, for the rows of z
    patch(model)                    how many latents an image token is: ((frames,) height, width) or (time,)

and, where they apply,

    needs(model)                    what a CONDITIONING has to carry beside its embedding
    spread(model, x, map, conds)    a map [batch, 1, (frames,) height, width] over latents x as the layers read it, if
                                    not its value at every patch; conds is what else the model gets in this call
    shaped_keys(layer, k)           what the prompt's module gave as keys_values gives K-
    shaped_values(layer, v)         the same of V
    patched(text, options)          where patches of other nodes change the text on its way to the layers: text as they
                                    leave it, by the call's transformer_options; keys_values gets that

READS, the attributes of the model that a call reads beside its blocks; without all of them a new core has changed it;
and TEXT_CHANGES_WITH_TIME, whether `text` reads the timestep (of the model, where not all do), and RULE, the family's
rule of `rules.RULES`. What a layout of joint attention has is in side_stream.py.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import comfyui_version
import torch

from ...quoting import quoted
from .grid import over_patches

#: ComfyUI's diffusion model classes, subclasses included, and the file here that knows their layout.
LAYOUTS = {
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel": "unet",
    "comfy.ldm.pixart.pixartms.PixArtMS": "pixart",
    "comfy.ldm.hydit.models.HunYuanDiT": "hunyuan_dit",
    "comfy.ldm.wan.model.WanModel": "wan",
    "comfy.ldm.lightricks.model.LTXVModel": "ltx_video",
    "comfy.ldm.cosmos.predict2.MiniTrainDIT": "cosmos",
    "comfy.ldm.cosmos.model.GeneralDIT": "cosmos_1",
    "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel": "omnigen2",
    "comfy.ldm.kandinsky5.model.Kandinsky5": "kandinsky",
    "comfy.ldm.ace.model.ACEStepTransformer2DModel": "ace_step",
    "comfy.ldm.ace.ace_step15.AceStepConditionGenerationModel": "ace_step_15",
    "comfy.ldm.audio.dit.AudioDiffusionTransformer": "stable_audio",
    "comfy.ldm.flux.model.Flux": "flux",
    "comfy.ldm.chroma.model.Chroma": "chroma",
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": "hunyuan_video",
    "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT": "sd3",
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": "qwen_image",
    "comfy.ldm.lumina.model.NextDiT": "lumina",
    "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel": "mage_flow",
    "comfy.ldm.lens.model.LensTransformer2DModel": "lens",
    "comfy.ldm.ernie.model.ErnieImageModel": "ernie",
    "comfy.ldm.joyimage.model.JoyImageTransformer3DModel": "joyimage",
    "comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint": "mochi",
    "comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel": "cogvideox",
    "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel": "hidream",
    "comfy.ldm.hidream_o1.model.HiDreamO1Transformer": "hidream_o1",
    "comfy.ldm.pixeldit.model.PixDiT_T2I": "pixeldit",
    "comfy.ldm.minimax.model.MiniMaxH3Model": "minimax_h3",
    "comfy.ldm.krea2.model.SingleStreamDiT": "krea2",
    "comfy.ldm.aura.mmdit.MMDiT": "auraflow",
    "comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel": "ideogram4",
    "comfy.ldm.boogu.model.BooguTransformer2DModel": "boogu",
}
_CASCADE = (
    "Stable Cascade",
    "where the prompt lies among the picture's own keys",
    "use the negative of a KSampler at a CFG above 1, or another model",
)
_OF_PICTURES = ("which is given pictures and no prompt", "remove the NASA patch")
_FINDS = ("which makes no pictures", "remove the NASA patch")
#: Classes of which NASA finds no text to steer: what users call the family, why, and what to do instead.
REFUSED = {
    "comfy.ldm.cascade.stage_c.StageC": _CASCADE,
    "comfy.ldm.cascade.stage_b.StageB": _CASCADE,
    "comfy.ldm.seedvr.model.NaDiT": ("SeedVR2", "whose prompt is always the same", "remove the NASA patch"),
    "comfy.ldm.minimax_music.dit.MiniMaxMusic3DiT": (
        "MiniMax Music", "whose prompt has become sound before it is sampled", "remove the NASA patch"
    ),
    "comfy.ldm.hunyuan3d.model.Hunyuan3Dv2": ("Hunyuan3D 2", *_OF_PICTURES),
    "comfy.ldm.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain": ("Hunyuan3D 2.1", *_OF_PICTURES),
    "comfy.ldm.trellis2.model.Trellis2": ("Trellis 2", *_OF_PICTURES),
    "comfy.ldm.triposplat.model.LatentSeqMMFlowModel": ("TripoSplat", *_OF_PICTURES),
    "comfy.ldm.depth_anything_3.model.DepthAnything3Net": ("Depth Anything 3", *_FINDS),
    "comfy.ldm.rt_detr.rtdetr_v4.RTv4": ("RT-DETR", *_FINDS),
    "comfy.ldm.sam3.detector.SAM3Model": ("SAM 3", *_FINDS),
}  # fmt: skip
#: What users call the models of the classes in LAYOUTS.
MODELS = (
    "SD 1.x", "SD 2.x", "SDXL", "SD 3", "Flux", "LongCat", "Ovis-Image", "OmniGen 2", "PixArt", "HunyuanDiT",
    "LTX-Video", "LTX-2", "Wan", "Cosmos", "Cosmos-Predict2", "Anima", "Kandinsky 5", "ACE-Step", "Stable Audio",
    "Qwen-Image", "Lumina 2", "Z-Image", "Mage-Flow", "Lens", "ERNIE-Image", "JoyImage", "Mochi", "CogVideoX",
    "HiDream-I1", "HiDream-O1", "PixelDiT", "PiD", "MiniMax H3", "Krea 2", "AuraFlow", "Chroma",
    "HunyuanVideo", "HunyuanImage", "Ideogram 4", "Boogu",
)  # fmt: skip
MODELS_IN_WORDS = f"{', '.join(MODELS[:-1])} or {MODELS[-1]}"


def find_layout(diffusion_model: torch.nn.Module) -> ModuleType | None:
    """The layout of a diffusion model, found by its class; None if there is none, or no cross-attention in it."""
    name = _of_class(LAYOUTS, diffusion_model)
    layout = name and importlib.import_module(f".{name}", __package__)
    return layout if layout and layout.blocks(uncompiled(diffusion_model)) else None


def needed(layout: ModuleType, diffusion_model: torch.nn.Module) -> tuple[str, ...]:
    """What a CONDITIONING has to carry beside its embedding."""
    return layout.needs(diffusion_model) if hasattr(layout, "needs") else ()


def spread(layout: ModuleType, diffusion_model: torch.nn.Module, x, map: torch.Tensor, conds: dict) -> torch.Tensor:
    """A map over latents x as the layers read it, by the layout's own `spread` or else over patches."""
    if hasattr(layout, "spread"):
        return layout.spread(diffusion_model, x, map, conds)
    return over_patches(map, x, layout.patch(diffusion_model))


def refusal(diffusion_model: torch.nn.Module, family: str) -> str:
    """The sentence about a model without a layout, of a family by the name that ComfyUI gives it."""
    if refused := _of_class(REFUSED, diffusion_model):
        name, why, remedy = refused
        return f"NASA cannot steer {name} ({family}), {why}: {remedy}."
    return (
        f"The model ({family}) is of a family that NASA does not support yet, whose text it cannot find: use "
        f"{MODELS_IN_WORDS}."
    )


def _of_class(table: dict, diffusion_model: torch.nn.Module):
    """What a table by names of classes has for a model's class, or else for the next one that it comes from."""
    classes = (
        f"{ancestor.__module__}.{ancestor.__qualname__}" for ancestor in type(uncompiled(diffusion_model)).__mro__
    )
    return next((table[name] for name in classes if name in table), None)


def text_width(diffusion_model: torch.nn.Module) -> int | None:
    """The width of the text embeddings that a diffusion model reads; None for one without a layout that fits it."""
    try:
        layout = find_layout(diffusion_model)
        return layout.width(uncompiled(diffusion_model)) if layout else None
    except AttributeError:
        return None


def check_layout(layout: ModuleType, diffusion_model: torch.nn.Module) -> None:
    """Raise AttributeError unless the model has what the layout reads of it."""
    for name in getattr(layout, "READS", ()):
        getattr(diffusion_model, name)
    for layers in layout.blocks(diffusion_model).values():
        for layer in layers:
            layout.forwards(layer)


@contextmanager
def as_known(diffusion_model: torch.nn.Module) -> Iterator[None]:
    """What is read of a model of a known family; ValueError where this ComfyUI has changed it."""
    try:
        yield
    except AttributeError as error:
        raise ValueError(
            f"ComfyUI {comfyui_version.__version__} has changed {type(uncompiled(diffusion_model)).__name__}, the "
            f"family of this model, so that NASA cannot steer it ({quoted(str(error))}): update this node pack, or "
            f"remove the NASA patch."
        ) from error


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, without torch.compile's wrapping."""
    return getattr(module, "_orig_mod", module)
