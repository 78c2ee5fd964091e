"""Reads an exported file back in diffusers, and compares what it makes with what was exported."""

import copy
from dataclasses import dataclass
from pathlib import Path

import peft
import safetensors
import safetensors.torch
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor, nn

from ..errors import UserError, quoted
from ..networks.backbones import LatentDiffusion
from ..networks.text import Text
from ..recipe.config import Start
from .families import PIXART, Layout, family_of
from .lora import DOWN, is_lora
from .stable_diffusion import UNET, unet_names


@dataclass(frozen=True)
class Written:
    """A file to check: its layout, the student that is in it, and for a LoRA the network below it.

    path: in a folder of its own, under the name that diffusers gives its weights, so that its loaders find it.
    """

    path: Path
    layout: Layout
    backbone: LatentDiffusion
    student: nn.Module
    start: Start
    base: nn.Module | None = None


def load_unet(path: str | Path, network: nn.Module) -> dict[str, str]:
    """Loads a UNet that `export` wrote, checkpoint or UNet alone, strictly into a diffusers UNet; returns the metadata.

    Raises UserError if the file is damaged, or a tensor is missing, left over or of another shape.
    """
    names = unet_names(network.state_dict())
    try:
        with safetensors.safe_open(path, "pt") as file:
            keys = list(file.keys())
            prefix = UNET if any(key.startswith(UNET) for key in keys) else ""
            wanted = {prefix + name for name in names.values()}
            marks = {prefix + "v_pred", prefix + "ztsnr"}  # of an SDXL
            present = {key for key in keys if key.startswith(prefix)} - marks
            if odd := sorted(wanted ^ present):
                raise UserError(
                    f"{quoted(path)} is no UNet of this size: {len(odd)} tensors are missing or extra, such as "
                    f"{quoted(odd[0])}."
                )
            state = {key: file.get_tensor(prefix + name).float() for key, name in names.items()}
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {quoted(path)}: {quoted(error)}; the file is missing or damaged.") from None
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{quoted(path)} does not fit the UNet it is loaded into: {quoted(str(error).splitlines()[-1].strip())}."
        ) from None
    return metadata


def in_diffusers(written: Written) -> float:
    """|x0 of the file - x0 of the student| / |x0 of the student|, the file read by diffusers' own loaders."""
    return distance(all_steps(written, _reloaded(written)), all_steps(written, written.student))


def probe(backbone: LatentDiffusion, steps: int) -> tuple[list[Tensor], Text]:
    """What both networks are asked: noise [1, c, h, w] for each step and random text [1, 20, width], always the same.

    Small, to be quick; but PixArt's positions depend on the mean of the sides, which is kept.
    """
    channels, height, width = backbone.latent_shape()
    config = backbone.network.config
    if "caption_channels" not in config:
        height, width = min(height, 8), min(width, 8)
    elif height > 8:
        height, width = 8, 2 * width - 8
    random = torch.Generator().manual_seed(0)
    z = torch.randn((1, channels, height, width), generator=random)
    short = backbone.text_shape._replace(tokens=20, masked=False)
    text = short.filled(lambda shape: torch.randn(shape, generator=random))
    noises = [z, *(torch.randn(z.shape, generator=random) for _ in range(1, steps))]
    return [noise.to(backbone.device) for noise in noises], text.to(backbone.device)


@torch.no_grad()
def all_steps(written: Written, network: nn.Module) -> Tensor:
    """x0 [1, c, h, w] of the probe."""
    noises, text = probe(written.backbone, written.start.steps)
    return written.backbone.all_steps(network, noises, text, written.start)


def _reloaded(written: Written) -> nn.Module:
    """The file as a diffusers network, by the way that diffusers' users take."""
    if written.layout == "lora":
        return _with_lora(copy.deepcopy(written.base), written.path)
    folder, network_class = written.path.parent, written.backbone.network_class
    written.student.save_config(folder)
    if written.layout == "transformer" and family_of(written.student.state_dict()) is PIXART:  # diffusers' own names
        found = network_class.from_pretrained(folder)
    else:
        found = network_class.from_single_file(str(written.path), config=str(folder), local_files_only=True)
    return found.float().to(written.backbone.device).eval()


def _with_lora(base: nn.Module, path: Path) -> nn.Module:
    if not hasattr(base, "load_lora_adapter"):  # diffusers has no LoRA loader for PixArt; peft is what its users take
        state = safetensors.torch.load_file(path)
        rank = next(len(tensor) for key, tensor in state.items() if key.endswith(DOWN))
        layers = [key.removeprefix("base_model.model.").removesuffix(DOWN) for key in state if key.endswith(DOWN)]
        wrapped = peft.get_peft_model(base, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
        missing = peft.set_peft_model_state_dict(wrapped, state)
        if missing.unexpected_keys or not is_lora(state):
            raise UserError(f"{quoted(path)} was not read back as a LoRA; nothing was kept.")
        return wrapped.eval()
    if hasattr(base, "transformer_blocks"):
        base.load_lora_adapter(safetensors.torch.load_file(path), prefix="transformer")
        return base.eval()
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(path))
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, network_alphas=alphas, unet=base)
    return base.eval()


def distance(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    if found.shape != wanted.shape:
        return float("inf")
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()
