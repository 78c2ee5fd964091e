"""What every backbone shares: a noise schedule, a denoising network on latents, an autoencoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, ModelMixin
from torch import Tensor, nn

from ...errors import UserError, quoted, quoted_value
from ...recipe.config import Start
from ..parameterization import PREDICTIONS
from ..text import Text, TextShape
from .schedule import read_schedule
from .sources import check_source, is_single_file, load_config, load_network

VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class LatentDiffusion:
    """All parts of a teacher, frozen, on one device; networks in fp32.

    alphas, sigmas: fp32 [timesteps], x_t = alphas[t] x0 + sigmas[t] eps, from the schedule itself.
    prediction_type: what the network says, of parameterization.py. network: the teacher's denoiser.

    A subclass gives the class attributes, `load_text`, `encode`, `output`, `text_shape` and `multiple`,
    `read_single_file` if it has one, and `load_schedule` where its schedule is not one of betas.
    """

    folder: str  # the denoiser's folder in a diffusers model
    network_class: type[ModelMixin]
    class_names: tuple[str, ...]  # under which a config.json may name that class
    known: dict[str, dict[str, Any]]  # {hub name: the denoiser's config.json}, so that --dry-run works off line
    noises: tuple[str, ...] = ("unit", "vp")  # what a student may start from (start.noise), the usual one first

    def __init__(self, source: str, device: torch.device | str = "cpu", parts: str | None = None):
        """`source`: diffusers folder, hub name, or single .safetensors file of the denoiser or of all parts.

        `parts`: the diffusers folder or hub name of what a single file leaves out. Raises UserError if a part is
        missing or damaged, does not go with the others, or is of a kind that PG-SB cannot train.
        """
        check_source(source)
        self.source, self.device = source, torch.device(device)
        self.parts = source if not is_single_file(source) else parts or next(iter(self.known))
        check_source(self.parts)
        try:
            self.describe(source, parts)
            config = load_config(DDIMScheduler, self.parts, "scheduler")
        except UserError as error:
            if parts or not is_single_file(source) or Path(self.parts).exists():
                raise
            raise UserError(
                f"{quoted(source)} is a single file; its noise schedule, its tokenizer and whatever else it leaves out "
                f"come from {self.parts}, which cannot be had: set `teacher_parts` to a diffusers folder of that model "
                f"({quoted(error)})"
            ) from None
        alphas, sigmas = self.load_schedule(config)
        self.alphas, self.sigmas = alphas.to(self.device), sigmas.to(self.device)
        self.network: nn.Module = self.load_network(source)
        vae_class = VAES.get(str(load_config(self.network_class, self.parts, "vae").get("_class_name")))
        if vae_class is None:
            raise UserError(f"The autoencoder in {quoted(self.parts)}/vae must be one of {', '.join(VAES)}.")
        self.vae: AutoencoderKL | AutoencoderTiny = load_network(vae_class, self.parts, "vae")
        scale = self.vae.config.scaling_factor
        if not isinstance(scale, (int, float)) or not 0 < scale < 1e6:
            raise UserError(
                f"The autoencoder in {quoted(self.parts)}/vae has scaling_factor {quoted_value(scale)}; copy its "
                f"config.json again."
            )
        self.load_text()
        if is_single_file(source):
            self.read_other_parts(source)
        for network in (self.network, self.vae):
            network.requires_grad_(False).eval().to(self.device)
        self.check_call()

    # --- what a subclass supplies ---------------------------------------------------------------------------------
    def load_text(self) -> None:
        """Loads tokenizer and text encoder from `self.parts` and checks that they go with the network."""
        raise NotImplementedError

    def encode(self, prompts: list[str]) -> Text:
        """Prompts as the teacher was trained to read them, [n] of them."""
        raise NotImplementedError

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor, text: Text, **arguments: Any) -> Tensor:
        """What `network` says, fp32 [n, c, h, w], of the kind that `prediction_type` names."""
        raise NotImplementedError

    @property
    def text_shape(self) -> TextShape:
        """What `output` reads of a prompt."""
        raise NotImplementedError

    def load_schedule(self, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """alphas and sigmas, of the teacher's scheduler_config.json; sets `sampler`, the teacher's own deterministic
        one (its `step` takes eps), and `prediction_type`. Raises UserError."""
        self.sampler, self.prediction_type = read_schedule(config, self.source)
        cumulative = self.sampler.alphas_cumprod.double()
        return cumulative.sqrt().float(), (1 - cumulative).sqrt().float()

    def read_single_file(self, path: str, network: nn.Module) -> nn.Module:
        """`network` with the weights of a single file. Raises UserError."""
        raise UserError(f"{quoted(path)}: single files are not read for this backbone; give a diffusers folder.")

    def read_other_parts(self, path: str) -> None:
        """Replaces autoencoder and text encoder by those in the single file, where it holds them."""

    # --- what all share -------------------------------------------------------------------------------------------
    @classmethod
    def describe(cls, source: str, parts: str | None = None) -> dict[str, Any]:
        """The denoiser's config without its weights. Raises UserError, also for one that cannot be trained here."""
        check_source(source)
        origin = source if not is_single_file(source) else parts or next(iter(cls.known))
        if origin in cls.known and not Path(origin).exists():
            return cls.known[origin]
        config = load_config(cls.network_class, origin, cls.folder)
        cls.check_config(config, source)
        return config

    @classmethod
    def bare(cls, network: nn.Module) -> "LatentDiffusion":
        """A backbone that holds the network alone: `output` and `text_shape` work, nothing else does."""
        backbone = cls.__new__(cls)
        backbone.network = network
        return backbone

    def load_network(self, source: str) -> nn.Module:
        """A denoiser of this kind, fp32, from any of the three sources. Raises UserError."""
        if not is_single_file(source):
            return load_network(self.network_class, source, self.folder)
        config = self.describe(source, self.parts)
        return self.read_single_file(source, self.network_class.from_config(config))

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(channels, height, width), height and width from the network unless given. Raises UserError."""
        height, width = size or self.own_size(self.network.config)
        if height % self.multiple or width % self.multiple:
            raise UserError(f"latent_size is {[height, width]}; this network needs multiples of {self.multiple}.")
        return self.network.config.in_channels, height, width

    @classmethod
    def own_size(cls, config: dict[str, Any]) -> tuple[int, int]:
        """Height and width in latents that a denoiser's config names. Raises UserError."""
        own = config.get("sample_size")
        sides = (own, own) if isinstance(own, int) else own
        whole = isinstance(sides, (list, tuple)) and all(isinstance(side, int) and side > 0 for side in sides)
        if not whole or len(sides) != 2:
            raise UserError(
                f"The teacher's {cls.folder} names no size of its own (sample_size is {quoted_value(own)}); set "
                f"`latent_size`."
            )
        return tuple(sides)

    @classmethod
    def check_config(cls, config: dict[str, Any], source: str) -> None:
        """Raises UserError for a denoiser that cannot be trained here, by its config.json."""
        name = config.get("_class_name", cls.class_names[0])
        if name not in cls.class_names:
            raise UserError(
                f"The {cls.folder} of the teacher {quoted(source)} is a {quoted(name)}; this backbone trains "
                f"{cls.class_names[0]}."
            )

    def check_text(self, width: int, wanted: int, known: int) -> None:
        """Raises UserError where text encoder, tokenizer and denoiser are no pair.

        width, known: of the text encoder, whose vocabulary has `known` tokens; wanted: by the denoiser.
        """
        if width != wanted:
            raise UserError(
                f"{quoted(self.source)}: the text encoder is {width} wide, the {self.folder} wants {quoted(wanted)}; "
                f"they are no pair."
            )
        self.check_vocabulary(self.tokenizer, known)

    def check_vocabulary(self, tokenizer: Any, known: int) -> None:
        """Raises UserError where a tokenizer has more tokens than its text encoder knows."""
        if len(tokenizer) > known:
            raise UserError(
                f"{quoted(self.parts)}: the tokenizer knows {len(tokenizer)} tokens, the text encoder only {known}; "
                f"they are no pair."
            )

    @torch.no_grad()
    def check_call(self) -> None:
        """One small forward. Raises UserError for a denoiser that wants other inputs, or answers NaN."""
        random = torch.Generator().manual_seed(0)
        side = max(8, self.multiple)
        x_t = torch.randn((1, self.network.config.in_channels, side, side), generator=random).to(self.device)
        text = self.text_shape.filled(lambda shape: torch.randn(shape, generator=random))
        try:
            eps = self.output(self.network, x_t, torch.tensor([500], device=self.device), text.to(self.device))
        except Exception as error:
            if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                raise
            raise UserError(
                f"The {self.folder} of the teacher {quoted(self.source)} cannot be asked as a text-to-image model is "
                f"({quoted(error)}); give another teacher."
            ) from None
        if eps.shape != x_t.shape or not bool(eps.isfinite().all()):
            told = "NaN or infinite numbers" if eps.shape == x_t.shape else f"{list(eps.shape)} to {list(x_t.shape)}"
            raise UserError(
                f"The {self.folder} of the teacher {quoted(self.source)} answers {told}; give another teacher."
            )

    @classmethod
    def check_start(cls, timestep: int, noise: str) -> None:
        """Raises UserError for a start (the settings `start.timestep` and `start.noise`) that no student can have."""

    def check_timesteps(self, latest: dict[str, int]) -> None:
        """`latest`: {setting: its last timestep}. Raises UserError for one that this schedule does not have."""
        last = len(self.alphas) - 1
        for setting, timestep in latest.items():
            if timestep > last:
                raise UserError(f"{setting} goes to {timestep}; the schedule of {quoted(self.source)} ends at {last}.")
            if self.alphas[timestep] < 1e-4:
                raise UserError(
                    f"{setting} goes to {timestep}, where the schedule of {quoted(self.source)} leaves nothing of the "
                    f"picture (zero terminal SNR); choose a smaller one."
                )

    @property
    def multiple(self) -> int:
        """Latent sides must be multiples of this."""
        raise NotImplementedError

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, text: Text, **arguments: Any) -> Tensor:
        """eps fp32 [n, c, h, w] by `network`: the student or either teacher. t [n] int64; `arguments` go to it."""
        to_eps, _ = PREDICTIONS[self.prediction_type]
        return to_eps(self.output(network, x_t, t, text, **arguments), x_t, *self.coefficients(t))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, fp32 [n, 1, 1, 1]."""
        return self.alphas[t].view(-1, 1, 1, 1), self.sigmas[t].view(-1, 1, 1, 1)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x0 + sigma_t noise, fp32."""
        alpha, sigma = self.coefficients(t)
        return alpha * x0.float() + sigma * noise.float()

    def one_step(
        self,
        network: nn.Module,
        z: Tensor,
        text: Text,
        timestep: int,
        noise: Literal["unit", "vp"],
        **arguments: Any,
    ) -> Tensor:
        """`picture` of `first_input`: x0 fp32 [n, c, h, w]."""
        return self.picture(network, *self.first_input(z, timestep, noise), text, **arguments)

    def all_steps(
        self, network: nn.Module, noises: Sequence[Tensor], text: Text, start: Start, **arguments: Any
    ) -> Tensor:
        """x0 of all steps of a student, each but the first from the picture before it with fresh noise.

        noises: [n, c, h, w] for each step, that of the first being z.
        """
        x0 = self.one_step(network, noises[0], text, start.timestep, start.noise, **arguments)
        for timestep, fresh in zip(start.timesteps[1:], noises[1:], strict=True):
            t = torch.full((len(x0),), timestep, dtype=torch.long, device=x0.device)
            x0 = self.picture(network, self.add_noise(x0, fresh, t), t, text, **arguments)
        return x0

    def first_input(self, z: Tensor, timestep: int, noise: Literal["unit", "vp"]) -> tuple[Tensor, Tensor]:
        """What a student is given first: x = z (unit) or sigma_t z (vp), fp32, and t [n]."""
        t = torch.full((len(z),), timestep, dtype=torch.long, device=z.device)
        _, sigma = self.coefficients(t)
        return z.float() if noise == "unit" else sigma * z.float(), t

    def picture(self, network: nn.Module, x_t: Tensor, t: Tensor, text: Text, **arguments: Any) -> Tensor:
        """x0 of what the network says of x_t, in fp32. t [n] int64.

        Of eps it is (x_t - sigma_t eps) / alpha_t: where t is the last one, 1 / alpha_t is 14.6 for SD, 157 for PixArt,
        and rounding eps to bf16 alone costs .024 and .26 RMS.
        """
        _, to_x0 = PREDICTIONS[self.prediction_type]
        return to_x0(self.output(network, x_t, t, text, **arguments), x_t, *self.coefficients(t))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> numpy.ndarray:
        """Latents [n, c, h, w] (scaled as the network sees them) to uint8 [n, height, width, 3]."""
        pictures = torch.cat([pictures_of(self.vae, part) for part in latents.split(16)])
        pictures = (pictures / 2 + 0.5).nan_to_num(0.5).clamp(0, 1)
        return (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()


def pictures_of(vae: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures [n, 3, height, width], about -1 to 1, of latents scaled as the network sees them; differentiable."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return vae.decode(latents.float() / vae.config.scaling_factor + shift, return_dict=False)[0]
