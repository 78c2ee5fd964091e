"""What a run was made of, by contents: prompts and networks may move, but not change, between start and resume.

    RUN/made_of.json     {what it is: SHA-256 of its contents}

Only what trains something is in there: prompts, teacher, what the student starts from, CLIP. Of a run of an older
trainer, which has no such file, the settings that name them are compared instead.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError, quoted
from ..files import atomic_file
from ..method.clip import ClipEmbeddings
from ..networks.backbones import LatentDiffusion
from ..prompts.read import digest

FILE = "made_of.json"
PROMPTS = "the prompts (prompts)"
TEXT = ("the teacher's text encoder or tokenizer (teacher)", "the teacher's other tokenizers (teacher)")
#: Settings of a denoiser's config.json that change what it says without changing the shape of a weight.
SHAPELESS = ("attention_head_dim", "num_attention_heads", "norm_num_groups", "norm_eps", "act_fn", "activation_fn",
             "flip_sin_to_cos", "freq_shift", "center_input_sample", "resnet_time_scale_shift", "time_embedding_type",
             "downsample_padding", "mid_block_scale_factor", "interpolation_scale", "sample_size")  # fmt: skip

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


def made_of(
    backbone: LatentDiffusion,
    prompts: Sequence[str] = (),
    negatives: Sequence[str] = (),
    clip: ClipEmbeddings | None = None,
    origin: nn.Module | None = None,
    encodes: bool = False,
) -> dict[str, str]:
    """{what it is, in words, with the setting that names it: SHA-256}, of what is given, before any of it is changed.

    origin: what the student starts from, where that is not the teacher. A text encoder counts where it is loaded, or
    where the run `encodes` by it: encoded prompts know their own.
    """
    found = {
        f"the teacher's {backbone.folder} (teacher)": digest_of(backbone.network, _shapeless(backbone.network)),
        "the teacher's noise schedule (teacher)": _digest_of_schedule(backbone),
    }
    if prompts:
        found[PROMPTS] = digest(prompts)
    if encodes or "text_encoder" in vars(backbone):  # in bf16, as it is held on a GPU
        first, *others = getattr(backbone, "tokenizers", {"": backbone.tokenizer}).values()
        found[TEXT[0]] = digest_of(backbone.text_encoder, _ids(first), torch.bfloat16)
        if others:
            found[TEXT[1]] = hashlib.sha256("".join(map(_ids, others)).encode()).hexdigest()
    if negatives:
        found["the negative prompts (nasa.prompts)"] = digest(negatives)
    if origin is not None:
        found["what the student starts from (student.start_from)"] = digest_of(origin)
    if clip:
        found["CLIP (clip.model)"] = digest_of(clip.model)
        found["the decoder for CLIP (clip.decoder)"] = digest_of(clip.decoder)
    return found


def text_of(found: dict[str, str]) -> str:
    """What encoded prompts were made of, of what `made_of` gives: the prompts, and all that reads them."""
    return json.dumps([found.get(name) for name in (PROMPTS, *TEXT)])


def check_made_of(run: Path, found: dict[str, str]) -> None:
    """Raises UserError where the run in that folder was made of something else. found: as `made_of` gives it."""
    if not is_recorded(run):
        return
    path = run / FILE
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"Cannot read {quoted(path)} ({quoted(error)}); delete it if prompts and teacher are what they were."
        ) from None
    if changed := [name for name in found if name in before and before[name] != found[name]]:
        raise UserError(
            f"{quoted(run)} was made of other contents; changed since then: {', '.join(changed)}. Put back what was "
            f"there (its place does not matter), or give another --output."
        )


def write_made_of(run: Path, found: dict[str, str]) -> None:
    """Beside config.yaml. Raises UserError (disk)."""
    with atomic_file(run / FILE) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def is_recorded(run: Path) -> bool:
    return (run / FILE).exists()


def digest_of(network: nn.Module, also: str = "", dtype: torch.dtype | None = None) -> str:
    """SHA-256 of all weights by name, whatever files they came from; of `also`; the weights as `dtype` if given."""
    found = hashlib.sha256(also.encode())
    for name, tensor in sorted(network.state_dict().items()):
        tensor = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        found.update(f"{name.removeprefix('text_model.')} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _ids(tokenizer: Any) -> str:
    """How it reads a sentence."""
    return json.dumps(tokenizer(["a photo of a red circle, 2 pets"]).input_ids)


def _digest_of_schedule(backbone: LatentDiffusion) -> str:
    """Of its settings, not of alpha itself, which another version of PyTorch may round otherwise."""
    config = backbone.sampler.config
    named = {key: config.get(key) for key in BETAS} | ({"shift": config["shift"]} if "shift" in config else {})
    return hashlib.sha256(json.dumps([backbone.prediction_type, named], default=str).encode()).hexdigest()


def _shapeless(network: nn.Module) -> str:
    return json.dumps({key: network.config.get(key) for key in SHAPELESS}, default=str)
