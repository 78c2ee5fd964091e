"""One entry of a negative CONDITIONING, as a model reads it."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from .conditioning import UNREADABLE, cannot_be_read, dense
from .kept import SHARE, keys_values_within
from .layouts import uncompiled
from .negative import Negative
from .regions import check_has_no_place, check_places, is_packed, region


@dataclass(frozen=True)
class Prompt:
    """One entry of a negative during one sampling run.

    Args:
        number: its place in the negative's CONDITIONING.
        conds: ComfyUI's conds by name, tensors on the device and in the dtype that the model computes in.
        region: where it acts, as `regions.region`.
        default: whether it acts where the negative's other entries leave room.
        start, end: the sigmas between which it acts; None for no bound.
        patcher: the model's.
        lasting: whether the weights stay as they are during the run.
    """

    negative: Negative
    number: int
    conds: dict[str, Any]
    region: torch.Tensor | None
    default: bool
    start: float | None
    end: float | None
    patcher: ModelPatcher
    lasting: bool

    def acts_at(self, sigma: torch.Tensor) -> bool:
        """By the rule of comfy.samplers.get_area_and_mult; the host waits for sigma only if there is a bound."""
        return (self.start is None or bool(sigma <= self.start)) and (self.end is None or bool(sigma >= self.end))

    def projection(
        self,
        layout: ModuleType,
        blocks: dict[str, list],
        model: torch.nn.Module,
        t: torch.Tensor,
        pictures: torch.Tensor | None,
        options: dict,
    ) -> "Projection":
        """What the layers attend to, for a call with sigmas t [batch] and these transformer_options.

        Args:
            pictures: which of the latents that are sampled each row is, [batch, 1, 1, ...]; None will do at `count` 1.
        """
        patched = hasattr(layout, "patched") and "attn2_patch" in options.get("patches", {})
        changes = layout.TEXT_CHANGES_WITH_TIME
        changes = changes(uncompiled(model.diffusion_model)) if callable(changes) else changes
        lasting = self.lasting and not changes and not patched
        kept = self.negative.kept.of(self.patcher, self.dtype) if lasting else {}
        place = t.device, self.number
        if place not in kept:
            limit = SHARE * self.patcher.model_size() if lasting else 0
            kept[place] = self._project(layout, blocks, model, t, options, limit)
        return kept[place].of(pictures)

    def _project(self, layout, blocks, model, t, options, limit):
        diffusion_model = uncompiled(model.diffusion_model)
        conds = {name: cond.to(t.device) if torch.is_tensor(cond) else cond for name, cond in self.conds.items()}
        text = layout.text(diffusion_model, conds, model.model_sampling.timestep(t[:1]).float())
        if hasattr(layout, "patched"):
            text = layout.patched(text, options)
        layers = [layer for block in blocks if block in self.negative.blocks for layer in blocks[block]]
        return Projection(text, keys_values_within(limit, layout, layers, text))

    @property
    def dtype(self) -> torch.dtype:
        return self.conds["c_crossattn"].dtype

    @property
    def count(self) -> int:
        """How many texts it is, one for each picture of a batch in turn."""
        return self.conds["c_crossattn"].shape[0]


@dataclass(frozen=True)
class Projection:
    """What the layers read of a prompt, [texts, tokens, width] or several such, and the (K-, V-) kept, by layer."""

    text: torch.Tensor | tuple[torch.Tensor, ...]
    keys_values: dict[Any, tuple[torch.Tensor, torch.Tensor]]

    def of(self, pictures: torch.Tensor | None) -> "Projection":
        """With a row for each of the pictures [batch, 1, 1, ...], where there are several texts."""
        texts = self.text if isinstance(self.text, tuple) else (self.text,)
        if texts[0].shape[0] == 1:
            return self
        index = pictures.flatten() % texts[0].shape[0]
        kept = {layer: (k[index], v[index]) for layer, (k, v) in self.keys_values.items()}
        texts = tuple(text[index] for text in texts)
        return Projection(texts if isinstance(self.text, tuple) else texts[0], kept)


def prepare(negative: Negative, guider, noise, latent_image, denoise_mask, seed) -> list[Prompt]:
    """The entries of a negative, prepared as ComfyUI prepares any conditioning when sampling starts.

    Args:
        guider: ComfyUI's, with its model loaded and its conds processed.
        noise: [batch, channels, (frames,) height, width] on the model's device.

    Raises:
        ValueError: the model cannot read it, or an area or a mask does not fit the picture.
    """
    model = guider.inner_model
    if is_packed(noise):
        check_has_no_place("negative", negative.conditioning)
    conds = [_scheduled(cond, negative) for cond in comfy.sampler_helpers.convert_cond(negative.conditioning)]
    # Of the parts that a latent is packed of, as LTX 2's video and sound.
    shapes = {"latent_shapes": model.latent_shapes} if getattr(model, "latent_shapes", None) else {}
    try:
        conds = comfy.samplers.process_conds(
            model, noise, {"negative": conds}, noise.device, latent_image, denoise_mask, seed, **shapes
        )["negative"]
        regions = [region(entry, noise) for entry in conds]
    except (*UNREADABLE, ValueError) as error:
        check_places("negative", negative.conditioning, noise)
        raise cannot_be_read("negative", error) from error
    dtype = model.manual_cast_dtype or model.get_dtype()
    # Hooks of the guider's conds move weights from call to call.
    hooked = any(entry.get("hooks") for entries in guider.conds.values() for entry in entries)
    return [
        Prompt(
            negative,
            number,
            {name: _cast(name, cond.cond, noise.device, dtype) if torch.is_tensor(cond.cond) else cond.cond
             for name, cond in entry["model_conds"].items()},
            regions[number],
            "default" in entry,
            entry.get("timestep_start"),
            entry.get("timestep_end"),
            guider.model_patcher,
            not hooked and not guider.model_patcher.forced_hooks,
        )
        for number, entry in enumerate(conds)
    ]  # fmt: skip


def _scheduled(cond: dict, negative: Negative) -> dict:
    """The negative without what acts on other models (ControlNet, GLIGEN, hooks), inside the node's step range."""
    cond = {key: value for key, value in cond.items() if key not in ("control", "gligen", "hooks")}
    if negative.start_percent > 0:
        cond["start_percent"] = max(negative.start_percent, cond.get("start_percent", 0.0))
    if negative.end_percent < 1:
        cond["end_percent"] = min(negative.end_percent, cond.get("end_percent", 1.0))
    return cond


def _cast(name: str, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """As BaseModel.apply_model casts conds, which happens after the wrappers."""
    if name == "c_crossattn":
        tensor = dense(tensor)
    elif tensor.dtype in (torch.int, torch.long):
        dtype = tensor.dtype
    return tensor.to(device, dtype)
