"""The warm start: pairs (z, x0) of the teacher's own deterministic sampler, made once and kept in the run folder, and
the student's regression onto them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_file
from ..networks.backbones import LatentDiffusion
from ..networks.text import Text
from ..prompts.embeddings import PromptEmbeddings
from ..prompts.encode import EncodedPrompts
from ..prompts.order import PromptOrder
from ..recipe.config import WarmStart
from .batches import Batch
from .guidance import Predict, guided
from .losses import regression_loss
from .one_step import OneStep
from .step import Step

SHARD = 64


@torch.no_grad()
def ddim_sample(
    sampler: DDIMScheduler, predict: Predict, z: Tensor, text: Text, null: Text, steps: int, scale: float
) -> Tensor:
    """x0 fp32 [n, c, h, w] by deterministic DDIM from the noise z, with CFG. predict(x_t, t, text) -> eps."""
    sampler.set_timesteps(steps, device=z.device)
    x = z.float()
    for t in sampler.timesteps:
        eps = guided(predict, x, t.expand(len(x)), text, null, scale)
        x = sampler.step(eps, t, x).prev_sample
    return x


def make_pairs(
    folder: Path,
    settings: WarmStart,
    seed: int,
    backbone: LatentDiffusion,
    predict: Predict,
    embeddings: PromptEmbeddings,
    shape: tuple[int, int, int],
    contents: dict[str, str],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Tensor]:
    """z and x0 fp32 [pairs, c, h, w] and prompt int64 [pairs] (an index into the prompt list), on the CPU.

    Made in shards of 64, each a file of its own: an interrupted run goes on with the next shard. A shard made with
    other settings, or of other `contents` (what made_of.py tells of prompts and teacher), is made again. stop() is
    asked between shards; once true, KeyboardInterrupt is raised.
    """
    steps, scale = settings.sampler_steps, settings.guidance_scale
    described = [steps, scale, seed, shape, contents]
    signature = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    order = PromptOrder(len(embeddings.prompts), seed)
    shards = []
    for start in tqdm(range(0, settings.pairs, SHARD), desc="teacher's samples", unit="shard"):
        path, count = folder / f"pairs-{start // SHARD:06d}.safetensors", min(SHARD, settings.pairs - start)
        if (shard := _read(path, signature, count)) is None:
            prompt = order.batch(start, count)
            z = torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed * 10**9 + start))
            text, device = embeddings.batch(prompt), backbone.device
            x0 = ddim_sample(backbone.sampler, predict, z.to(device), text, embeddings.nulls(count), steps, scale)
            shard = {"z": z, "x0": x0.cpu(), "prompt": torch.tensor(prompt)}
            with atomic_file(path) as temporary:
                safetensors.torch.save_file(shard, temporary, {"signature": signature})
            if start + count < settings.pairs and stop():
                raise KeyboardInterrupt(
                    f"Stopped while the teacher's samples were made; {start + count} of {settings.pairs} are kept, go "
                    f"on with --resume."
                )
        shards.append(shard)
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def _read(path: Path, signature: str, count: int) -> dict[str, Tensor] | None:
    try:
        with safetensors.safe_open(path, "pt") as file:
            shard = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return shard if (file.metadata() or {}).get("signature") == signature and len(shard["z"]) == count else None
    except (OSError, safetensors.SafetensorError):
        return None


class WarmStartUpdate:
    """The student's update before distillation: |G(z, text) - x0|^2, z and x0 being a pair of the teacher's.

    pairs: as `make_pairs` gives them, `count` of them.
    """

    role = "student"

    def __init__(
        self,
        one_step: OneStep,
        pairs: dict[str, Tensor] | None,
        embeddings: PromptEmbeddings | EncodedPrompts,
        count: int,
        seed: int,
    ):
        self.one_step, self.network, self.pairs, self.embeddings = one_step, one_step.trained, pairs, embeddings
        self.order = PromptOrder(count, seed)

    def losses(self, step: Step) -> Callable[[slice], Tensor]:
        size = step.draws.batch_size
        chosen = self.order.batch(step.number * size, size)
        step.z = self.pairs["z"][chosen]
        step.batch = Batch(self.embeddings, self.pairs["prompt"][chosen].tolist(), None)
        wanted = self.pairs["x0"][chosen]

        def of(rows: slice) -> Tensor:
            x0 = self.one_step(self.network, step, rows)
            losses = regression_loss(x0, wanted[rows].to(x0.device))
            step.note("regression_loss", losses)
            step.x0[rows.start] = x0.detach()
            return losses

        return of
