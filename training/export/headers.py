"""Tensor names, shapes and dtypes of a model file without its weights, and what they make it."""

import re
from collections import Counter
from math import prod
from pathlib import Path

import safetensors
import torch

from .. import COMMAND
from ..errors import UserError, quoted
from .stable_diffusion import UNET

Shapes = dict[str, tuple[tuple[int, ...], str]]  # {tensor: (shape, dtype)}

# What a file may be, the first that fits: (what it is, and what reads it; a pattern that some name must match).
KINDS = (
    ("LoRA, kohya-ss names (ComfyUI's Load LoRA, diffusers)", r"lora_unet_.*\.lora_(up|down)\.weight"),
    ("LoRA, diffusers' names (ComfyUI's Load LoRA, diffusers)", r"transformer\..*\.lora_A(\.\w+)?\.weight"),
    ("LoRA, peft's names (ComfyUI's Load LoRA, peft)", r".*\.lora_A(\.\w+)?\.weight"),
    (
        "whole checkpoint (ComfyUI's Load Checkpoint, diffusers)",
        r"cond_stage_model\.|conditioner\.embedders\.|text_encoders\.",
    ),
    (
        "transformer, original names (ComfyUI's Load Diffusion Model, diffusers)",
        r"(model\.diffusion_model\.)?joint_blocks\.",
    ),
    ("UNet, original names (ComfyUI's Load Diffusion Model)", r"(model\.diffusion_model\.)?input_blocks\.0\.0\."),
    ("UNet, diffusers' names (ComfyUI's Load Diffusion Model, diffusers)", r"down_blocks\.0\.(resnets|attentions)\."),
    ("transformer, diffusers' names (ComfyUI's Load Diffusion Model, diffusers)", r"adaln_single\.linear\.weight"),
    ("transformer, original names (ComfyUI's Load Diffusion Model)", r"t_block\.1\.weight"),
    (f"encoded prompts ({COMMAND} encode)", r"offsets$"),
    ("text encoder", r"(text_model\.)?embeddings\.token_embedding|encoder\.block\.0\.layer\.0\.SelfAttention"),
    ("autoencoder", r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|layers\.0|mid)"),
)


def read_header(path: Path) -> tuple[Shapes, dict[str, str]]:
    """Shapes, dtypes and metadata of a .safetensors file, without reading a weight. Raises UserError."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            return shapes, file.metadata() or {}
    except (OSError, safetensors.SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(
            f"Cannot read {quoted(path)}: {quoted(error)}; the file is cut short or damaged, copy it again."
        ) from None


def read_pickle(path: Path) -> Shapes:
    """The same of a pickled state dict, by PyTorch's restricted reader and without its weights. Raises UserError."""
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # whatever the reader raises on hostile or damaged files
        raise UserError(
            f"{quoted(path)} is a pickle that PyTorch's safe reader refuses ({quoted(error)}); it is not opened, "
            f"get the model as .safetensors."
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    names = {str(torch.float32): "F32", str(torch.float16): "F16", str(torch.bfloat16): "BF16"}
    shapes = {
        str(name): (tuple(value.shape), names.get(str(value.dtype), str(value.dtype).removeprefix("torch.")))
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    if not shapes:
        raise UserError(f"{quoted(path)} holds no tensors by name; it is no model's state dict.")
    return shapes


def tensor_lines(shapes: Shapes) -> list[str]:
    """Layout, family, rank, parameters and dtype, a line each."""
    family = family_told(shapes)
    lines = [f"layout      {kind_of(shapes)}", *([f"family      {family}"] if family else [])]
    ranks = {shape[0] for name, (shape, _) in shapes.items() if re.search(r"lora_(down|A)\b", name) and shape}
    if ranks:
        lines.append(f"rank        {', '.join(map(str, sorted(ranks)))}")
    count, dtypes = weight(shapes)
    return [*lines, f"parameters  {count}", f"dtype       {dtypes}"]


def kind_of(shapes: Shapes) -> str:
    """What the file is, and what reads it, in words."""
    kinds = (kind for kind, pattern in KINDS if any(re.match(pattern, name) for name in shapes))
    return next(kinds, f"not known; a tensor is {min(shapes, default=None)}")


def weight(shapes: Shapes) -> tuple[str, str]:
    """("859.5 million in 686 tensors", "F16 100%")."""
    dtypes = Counter()
    for shape, dtype in shapes.values():
        dtypes[dtype] += prod(shape)
    count = dtypes.total()
    shares = ((dtype, size / max(count, 1)) for dtype, size in dtypes.most_common())
    share = ", ".join(f"{dtype} {part:.0%}" if part >= 0.01 else f"{dtype} under 1%" for dtype, part in shares)
    return f"{_number(count)} in {len(shapes)} tensors", share or "none"


def family_told(shapes: Shapes) -> str:
    """In words, by the text that the denoiser attends to, as ComfyUI tells them apart; "" where it is not known."""
    names = {name.removeprefix(UNET): shape for name, (shape, _) in shapes.items()}
    if "caption_projection.linear_1.weight" in names or "y_embedder.y_proj.fc1.weight" in names:
        micro = any("resolution_embedder" in name or "csize_embedder" in name for name in names)
        taken = "alpha, for it has micro-conditions" if micro else "Sigma (latents times .13025), for it has none"
        return f"PixArt; ComfyUI takes it for {taken}"
    if "joint_blocks.0.context_block.attn.qkv.weight" in names:
        return "Stable Diffusion 3.x, a flow model"
    widths = {shape[1] for name, shape in names.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2}
    if len(widths) != 1:
        return ""
    known = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
    return f"{known.get(width := widths.pop(), 'a UNet')} (attends to text {width} wide)"


def _number(count: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= size:
            return f"{count / size:.4g} {name}"
    return str(count)
