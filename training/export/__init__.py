"""From a run to a file that ComfyUI and diffusers load."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from ..errors import UserError, quoted
from ..files import atomic_file, check_writable, save_tensors, scratch_folder
from ..networks.backbones import LatentDiffusion, load_backbone
from ..networks.student import plain_student, student_origin
from ..recipe.config import digest
from ..run.folder import Run, open_run
from ..run.made_of import check_made_of, made_of
from .card import write_card
from .comfyui import find_comfyui, in_comfyui
from .families import SDXL, Layout, family_of
from .headers import read_header
from .layouts import checkpoint_tensors, chosen_layout, comfyui_prediction, lora_tensors, network_tensors
from .lora import is_lora
from .metadata import licence_of, model_spec, our_keys, write_hash
from .names import clean_names
from .stable_diffusion import LATENT_SCALE, stable_diffusion_checkpoint, unet_names
from .verify import Written, in_diffusers

LONGEST_TEXT = 1000  # characters of a title or licence
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}  # fp16 keeps 11 bits of each weight


def export(
    source: str | Path,
    output: str | Path,
    layout: Layout | None = None,
    half: bool = False,
    average: bool = True,
    title: str | None = None,
    licence: str | None = None,
    check: Literal["all", "diffusers"] = "all",
    tell: Callable[[str], None] = lambda line: None,
    card: bool = True,
) -> float:
    """Writes the student of a run, or of one of its checkpoints, as safetensors; returns the relative difference.

    layout: what LAYOUTS in families.py describes; by default `lora` for a student that is one, else the whole
    checkpoint (Stable Diffusion) or the transformer (PixArt). A LoRA in another layout is merged into its base.
    average: EMA weights where the run has them. licence: of the base model; by default what its model card names,
    and that of the network that the student started from.

    The file is read back by diffusers and, with check `all`, by the ComfyUI that COMFYUI_PATH names, and compared with
    the student in all of its steps before it takes its name, so a wrong file never replaces a good one. tell: gets a
    line for each finding. card: write its model card beside it. Raises UserError.
    """
    output, dtype = Path(output), torch.float16 if half else torch.float32
    check_arguments(output, {"--title": title, "--licence": licence})
    run = open_run(source)
    config, weights = run.config, clean_names(run.weights(average))
    backbone = load_backbone(config.backbone, config.teacher, parts=config.teacher_parts)
    family = family_of(backbone.network.state_dict())
    layout = chosen_layout(layout, family, is_lora(weights))
    student = _student(run, weights, backbone)
    start_from, base = config.student.start_from, None
    if layout == "lora":
        base = backbone.load_network(start_from) if start_from else backbone.network
        tensors = lora_tensors(weights, family, config.student.lora.alpha / config.student.lora.rank)
    elif layout == "checkpoint":
        tensors = checkpoint_tensors(student.state_dict(), backbone)
    else:
        tensors = network_tensors(student.state_dict(), backbone)
    backbone.network = student  # frees the teacher's weights, which may be gigabytes
    _convert(tensors, dtype)
    if layout != "lora" or family is not SDXL:  # there the checkpoint below a LoRA says it
        _tell_prediction(comfyui_prediction(tensors, family), backbone.prediction_type, layout, tell)
    height, width = (8 * side for side in backbone.latent_shape(config.latent_size)[1:])
    licence = licence or licence_of(config.teacher, start_from or config.teacher)
    told = (config.start, family, backbone.prediction_type, licence)
    described = model_spec(title or run.folder.resolve().name, f"{width}x{height}", layout, *told)
    described |= our_keys(config.backbone, config.teacher, config.kappa, digest(config), *told)
    with atomic_file(output) as temporary, scratch_folder(output) as folder:
        path = folder / SAFETENSORS_WEIGHTS_NAME
        save_tensors(path, tensors, described)
        write_hash(path)
        del tensors
        written = Written(path, layout, backbone, student, config.start, base)
        difference = in_diffusers(written)
        _refuse_difference("diffusers", difference, dtype)
        tell(f"Read back by diffusers: the student's latent differs by {difference:.1e} (relative).")
        if check == "all":
            _check_in_comfyui(written, dtype, tell)
        os.replace(path, temporary)
    if card:
        write_card(output, read_header(output), run, tell)
    return difference


def check_arguments(output: Path, texts: dict[str, str | None]) -> None:
    """Raises UserError for a name or text that no file could have, before anything is loaded."""
    if output.suffix != ".safetensors":
        raise UserError(f"--output is {quoted(output)}; the file's name must end in .safetensors.")
    if output.is_dir():
        raise UserError(f"--output is {quoted(output)}, a folder; give the name of a file.")
    check_writable(output.parent)
    for name, text in texts.items():
        if text and (re.search("[\0\ud800-\udfff]", text) or len(text) > LONGEST_TEXT):
            raise UserError(f"{name} is {quoted(text)}; give plain text of at most {LONGEST_TEXT} characters.")


def _student(run: Run, weights: dict[str, Tensor], backbone: LatentDiffusion) -> nn.Module:
    """The student with those weights, whole. Raises UserError where the teacher is not the run's."""
    settings = run.config.student
    origin = student_origin(backbone, settings)
    check_made_of(run.folder, made_of(backbone, origin=origin if settings.start_from else None))
    if is_lora(weights):
        weights = {f"base_model.model.{key}": tensor for key, tensor in weights.items()}
    return plain_student(backbone, settings, weights, origin)


def _convert(tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """In place, a tensor at a time; scalars stay as they are, such as the tiny autoencoder's two."""
    for key, tensor in tensors.items():
        if tensor.ndim and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        tensors[key] = tensor.contiguous()


def _tell_prediction(guessed: tuple[str, str], prediction: str, layout: Layout, tell: Callable[[str], None]) -> None:
    guess, reason = guessed
    if layout != "lora":
        tell(f"ComfyUI's own loaders will take the file for {guess} ({reason}).")
    if guess != prediction:
        tell(
            f"It is {prediction}: load it with SNOOPI Checkpoint Loader, which reads that from the file, or put a "
            f"ModelSamplingDiscrete behind the stock loader."
        )


def _check_in_comfyui(written: Written, dtype: torch.dtype, tell: Callable[[str], None]) -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        tell("Not read back by ComfyUI: COMFYUI_PATH names no checkout.")
        return
    try:
        figures, told = in_comfyui(written, comfyui)
    except UserError as error:  # perhaps ComfyUI itself is ill, or the network narrower than it knows
        tell(f"Not read back by ComfyUI: {error}")
        return
    _refuse_difference("ComfyUI", figures["x0"], dtype)
    if figures.get("text", 0) > TOLERANCE[dtype]:
        tell("ComfyUI encodes prompts otherwise than the teacher: its text encoder is not the family's own.")
    names = {"x0": "the student's latent", "text": "encoded text", "picture": "decoded picture"}
    differences = ", ".join(f"{names[key]} {value:.1e}" for key, value in figures.items())
    tell(
        f"Read back by ComfyUI {told['version']} as {told['model']}, {told['prediction']}, latents times "
        f"{told['latent_scale']}; differences: {differences}."
    )
    wanted = written.backbone.vae.config.scaling_factor
    if written.layout in ("unet", "transformer") and abs(wanted - told["latent_scale"]) > 1e-6:
        tell(f"The teacher's own autoencoder wants latents times {wanted}: with a stock loader colours will be off.")


def _refuse_difference(reader: str, difference: float, dtype: torch.dtype) -> None:
    if not difference <= TOLERANCE[dtype]:
        raise UserError(
            f"Read back by {reader}, the file differs from the student by {difference:.1e}; nothing kept."
        )


__all__ = ["LATENT_SCALE", "export", "stable_diffusion_checkpoint", "unet_names"]
