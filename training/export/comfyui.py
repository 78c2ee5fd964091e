"""Checks an exported file in a real ComfyUI, which runs in a process of its own: the trainer never imports it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import safetensors.torch
import torch
from torch.nn.functional import pad

from ..errors import UserError, quoted
from ..networks.backbones.latent_diffusion import LatentDiffusion, pictures_of
from .layouts import network_tensors
from .verify import Written, all_steps, distance, probe

SCRIPT = Path(__file__).with_name("in_comfyui.py")
SECONDS = 1800
#: ComfyUI's names of text encoders, by their folders in a diffusers model
TEXT_ENCODERS = {"text_encoder": "l", "text_encoder_2": "g", "text_encoder_3": "t5xxl"}


def in_comfyui(written: Written, comfyui: Path) -> tuple[dict[str, float], dict[str, str]]:
    """How far ComfyUI's x0 is from the student's; and what ComfyUI said of itself and of the model.

    Figures: x0 and, for a whole checkpoint, text (relative, the pooled vector too) and picture (largest difference,
    pixels being 0 to 1).
    Raises UserError with ComfyUI's last words if it does not load the file.
    """
    noises, text = probe(written.backbone, written.start.steps)
    inputs = {"noises": torch.stack(noises).cpu().numpy(), "text": text.embeddings.cpu().numpy()}
    if text.pooled is not None:
        inputs["pooled"] = text.pooled.cpu().numpy()
    wanted = {"x0": all_steps(written, written.student).cpu().numpy()}
    if written.layout == "checkpoint":
        more, expected = _checkpoint_probe(written.backbone)
        inputs, wanted = inputs | more, wanted | expected
    folder = written.path.parent
    base = folder / "base.safetensors" if written.base else None
    if base:
        safetensors.torch.save_file(network_tensors(written.base.state_dict(), written.backbone), base)
    numpy.savez(folder / "inputs.npz", **inputs)
    request = {
        "comfyui": str(comfyui.resolve()),
        "file": str(written.path.resolve()),
        "base": str(base) if base else None,
        "layout": written.layout,
        "prediction": written.backbone.prediction_type,
        "timesteps": written.start.timesteps,
        "noise": written.start.noise,
        "inputs": str(folder / "inputs.npz"),
        "outputs": str(folder / "outputs.npz"),
    }
    (folder / "request.json").write_text(json.dumps(request))
    # as -c, because a script's own folder would come first in sys.path, and this one has an inspect.py
    command = [comfyui_python(comfyui), "-c", SCRIPT.read_text(), str(folder / "request.json")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"ComfyUI at {quoted(comfyui)} could not be run ({quoted(error)}).") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"ComfyUI at {quoted(comfyui)} did not load the file ({quoted(last)}).")
    with numpy.load(folder / "outputs.npz") as outputs:
        found = {key: outputs[key] for key in outputs.files}
    told = json.loads(str(found.pop("told")))
    figures = {"x0": distance(torch.from_numpy(found["x0"]), torch.from_numpy(wanted["x0"]))}
    if "text" in found:
        read = [name for name in ("text", "pooled") if name in wanted]
        figures["text"] = max(distance(torch.from_numpy(found[name]), torch.from_numpy(wanted[name])) for name in read)
        figures["picture"] = float(numpy.abs(found["picture"] - wanted["picture"]).max())
    return figures, told


def find_comfyui() -> Path | None:
    """The checkout that COMFYUI_PATH names, if it is one."""
    named = os.environ.get("COMFYUI_PATH")
    return Path(named) if named and (Path(named) / "comfy" / "sd.py").is_file() else None


def comfyui_python(comfyui: Path) -> str:
    """COMFYUI_PYTHON, else the interpreter that an installation keeps in or beside its folder, else this one."""
    beside = ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", "../python_embeded/python.exe")
    found = (str(comfyui / place) for place in beside if (comfyui / place).is_file())
    return os.environ.get("COMFYUI_PYTHON") or next(found, sys.executable)


@torch.no_grad()
def _checkpoint_probe(backbone: LatentDiffusion) -> tuple[dict[str, numpy.ndarray], dict[str, numpy.ndarray]]:
    """Inputs and expected outputs of a checkpoint's autoencoder and text encoders."""
    latent = torch.randn((1, backbone.latent_shape()[0], 8, 8), generator=torch.Generator().manual_seed(1))
    picture = pictures_of(backbone.vae, latent.to(backbone.device)) / 2 + 0.5
    picture = picture.clamp(0, 1).permute(0, 2, 3, 1)
    prompts, inputs, shape = ["a photo of a pet"], {"latent": latent.numpy()}, backbone.text_shape
    options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    for folder, tokenizer in getattr(backbone, "tokenizers", {"text_encoder": backbone.tokenizer}).items():
        inputs[f"tokens_{TEXT_ENCODERS[folder]}"] = tokenizer(prompts, **options).input_ids.numpy()
    text = backbone.encode(prompts)  # as wide as its encoders are, where ComfyUI pads
    expected = {"picture": picture, "text": pad(text.embeddings, (0, shape.width - text.embeddings.shape[-1]))}
    if text.pooled is not None:
        expected["pooled"] = pad(text.pooled, (0, shape.pooled - text.pooled.shape[-1]))
    return inputs, {name: tensor.cpu().numpy() for name, tensor in expected.items()}
