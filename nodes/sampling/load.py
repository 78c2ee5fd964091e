"""Loads a model file with what it says of itself, and sets right what ComfyUI's detection gets wrong."""

import errno
import logging
import os
import pickle
import re
import traceback
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher

from ..quoting import is_plain, quoted, sentence
from .backbones import backbone_of
from .detect import AUTO, Choice, choose
from .files import ModelFile, read_metadata, remember, stamp
from .one_step import check_fit
from .origin import Origin
from .presets import find_preset
from .saved import saying

FOLDERS = ("checkpoints", "diffusion_models")
PIXART_ALPHA_SCALE = 0.18215
PIXART_ALPHA_TOKENS = 120  # PixArt-sigma reads 300
PREDICTION_TYPES = {"epsilon": ModelType.EPS, "v": ModelType.V_PREDICTION, "v_prediction": ModelType.V_PREDICTION}
PREDICTIONS = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION}
READER = "load_torch_file"  # the function of ComfyUI that reads any file
OUT_OF_MEMORY = re.compile("out of memory|DefaultCPUAllocator", re.IGNORECASE)


def model_names() -> list[str]:
    """Every file that can be chosen, as "folder/name"; one whose name is HTML is left out, and the log says so."""
    names = [f"{folder}/{name}" for folder in FOLDERS for name in folder_paths.get_filename_list(folder)]
    for name in names:
        if not is_plain(name):
            logging.warning("SNOOPI: %s is not offered: take < and > out of its name.", sentence(quoted(name)))
    return [name for name in names if is_plain(name)]


def load(name: str, preset: str) -> tuple[ModelPatcher, object | None, object | None, str]:
    """Load one file of `model_names`.

    Args:
        name: "folder/name".
        preset: what the file is; `auto` to find out.

    Returns:
        The model, the text encoder and the autoencoder (None for a diffusion model), and what there is to tell.

    Raises:
        ValueError: the file is missing, corrupt, not a model, or a pickle that holds more than weights; or there is no
            such preset, or it is for another architecture.
    """
    folder, path, file_name = _place(name)
    if path is None:
        there = folder if folder in FOLDERS else " or models/".join(FOLDERS)
        raise ValueError(f"The model {quoted(name)} is not there: put the file into models/{there} and press R.")
    if preset != AUTO:
        find_preset(preset)
    metadata, before = read_metadata(path), stamp(path)
    model, clip, vae = _read(path, folder)
    if stamp(path) != before:
        raise ValueError(f"{quoted(file_name)} was written anew while it was loaded: queue the graph again.")

    file = ModelFile(file_name, metadata, None if preset == AUTO else preset)
    if backbone_of(model) is None:
        return model, clip, vae, f"No preset is for this architecture ({type(model.model).__name__})."
    choice = choose(model, preset, Origin((file,)))
    check_fit(model, choice.preset)
    remember(model, file)
    model, repairs = repaired(model, file, choice)
    if choice.known:
        model = saying(model, choice.preset)
    return model, clip, vae, " ".join([choice.sentence, *repairs])


def stamps_of(name: str | None) -> list[tuple[int, int] | None]:
    """What differs once the file called "folder/name" is written anew; of all files if a link gives the name."""
    paths = [_place(each)[1] for each in ([name] if isinstance(name, str) else model_names())]
    return [path and stamp(path) for path in paths]


def repaired(model: ModelPatcher, file: ModelFile, choice: Choice) -> tuple[ModelPatcher, list[str]]:
    """`model`, or a clone with what stock detection got wrong set right, and a sentence for each repair.

    PixArt-alpha at 512 px has no size embedding and is taken for PixArt-sigma, whose latents are scaled by .13025
    instead of .18215. Whether SD 2.x predicts noise or velocity is guessed from the spread of one bias.
    """
    said = []
    backbone, base = backbone_of(model), model.model
    if backbone == "PixArt" and base.latent_format.scale_factor != PIXART_ALPHA_SCALE:
        tokens = base.model_config.unet_config.get("model_max_length")
        if (
            choice.preset.latent_scale == PIXART_ALPHA_SCALE
            or tokens == PIXART_ALPHA_TOKENS
            or "alpha" in file.name.lower()
        ):
            model = model.clone()
            model.add_object_patch("latent_format", comfy.latent_formats.SD15(PIXART_ALPHA_SCALE))
            said.append("It is PixArt-alpha, taken for PixArt-sigma: its latent scale is set to 0.18215.")
    if backbone == "SD 2.x":
        prediction = PREDICTION_TYPES.get(file.metadata.get("modelspec.prediction_type", ""))
        if choice.known and not choice.preset.follows_base:
            prediction = PREDICTIONS.get(choice.preset.prediction)
        if prediction is not None and prediction != base.model_type:
            model = model.clone()
            model.add_object_patch("model_sampling", comfy.model_base.model_sampling(base.model_config, prediction))
            said.append(f"ComfyUI took it for {base.model_type.name}: it is set to {prediction.name}.")
    return model, said


def _place(name: str) -> tuple[str, str | None, str]:
    folder, _, file_name = name.partition("/") if isinstance(name, str) else ("", "", "")
    return folder, folder_paths.get_full_path(folder, file_name) if folder in FOLDERS else None, file_name


def _read(path: str, folder: str) -> tuple[ModelPatcher, object | None, object | None]:
    if not _is_safetensors(path) and not getattr(comfy.utils, "ALWAYS_SAFE_LOAD", True):
        file = quoted(Path(path).name)
        raise ValueError(f"{file} is a pickle, which this PyTorch cannot load safely: update PyTorch to 2.4 or newer.")
    try:
        with open(path, "rb"):  # says why a file cannot be opened, which safetensors does not
            pass
        if folder == "checkpoints":
            embeddings = folder_paths.get_folder_paths("embeddings")
            return comfy.sd.load_checkpoint_guess_config(path, embedding_directory=embeddings)[:3]
        return comfy.sd.load_diffusion_model(path), None, None
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # whatever a file can hold, and whatever ComfyUI's detection makes of it
        # ComfyUI unloads its models for the error of a full GPU.
        kind = type(error) if isinstance(error, torch.cuda.OutOfMemoryError) else ValueError
        raise kind(_refusal(error, path, folder)) from error


def _refusal(error: Exception, path: str, folder: str) -> str:
    """Why a file could not be loaded, in a sentence."""
    file, number = quoted(Path(path).name), getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or OUT_OF_MEMORY.search(str(error)):
        return f"{file} does not fit, out of memory: close other programs, or take a smaller version of the model."
    if number is not None:
        return f"{file} cannot be read ({os.strerror(number)}): check its permissions and its disk."
    with open(path, "rb") as content:
        if content.read(4) == b"GGUF":
            return f"{file} is a GGUF file: load it with the loader of ComfyUI-GGUF instead."
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{file} is a pickle that holds more than weights, or is corrupt, so it is not loaded: look for a "
            f".safetensors file of the model, or convert it to one on a machine that you can do without."
        )
    calls = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    if READER in calls and (_is_safetensors(path) or calls[-1] != READER):  # else a pickle of something else was read
        return f"{file} is corrupt or incomplete: download it again."
    return (
        f"{file} is not a model that ComfyUI knows, or belongs in another folder than models/{folder}: "
        f"see the page it comes from."
    )


def _is_safetensors(path: str) -> bool:
    return path.lower().endswith((".safetensors", ".sft"))
