"""PG-SB as a run sees it: three phases on one count of steps, and the updates that each consists of.

warm start (if asked for)   the student regresses onto the teacher's own samples
lora (if asked for)         the LoRA teacher alone learns the student's pictures
vsd                         the student's update, then the LoRA teacher's
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from ..networks.backbones import LatentDiffusion
from ..networks.teachers import Teachers
from ..prompts.embeddings import PromptEmbeddings
from ..prompts.encode import EncodedPrompts
from ..recipe.config import Config
from .batches import Batches
from .clip import ClipEmbeddings, ClipLoss
from .draws import Draws
from .guidance import Guidance
from .lora_update import LoraUpdate
from .one_step import OneStep
from .step import Step, Update
from .student_update import StudentUpdate
from .warm_start import WarmStartUpdate


@dataclass(frozen=True)
class Phase:
    """open(step) makes what the updates of that step share.

    rate, betas: of the student's optimiser. averaged: whether the student's average (EMA) is kept.
    """

    name: str
    steps: range
    updates: Sequence[Update]
    open: Callable[[int], Step]
    rate: float
    betas: tuple[float, float]
    averaged: bool


def phases(
    config: Config,
    backbone: LatentDiffusion,
    shape: tuple[int, int, int],
    teachers: Teachers,
    one_step: OneStep,
    embeddings: PromptEmbeddings | EncodedPrompts,
    negatives: Sequence[str],
    clip: ClipEmbeddings | None,
    pairs: dict[str, Tensor] | None,
    watch_gap: Callable[[Tensor, Tensor], None],
    autocast: Callable[[], AbstractContextManager],
) -> list[Phase]:
    """All phases of a run, in their order. shape: of a latent. pairs: the warm start's; None where it is over."""
    first_vsd = config.warm_steps + config.lora.initial_steps
    batches = Batches(embeddings, negatives, config.batch_size, config.seed)
    batches_a_step = config.lora.updates if config.lora.fresh and config.lora.fresh_prompts else 1

    def number_of(step: int, index: int) -> int:
        return (step - config.warm_steps) * batches_a_step + index

    def bare(step: int) -> Step:
        return Step(step, Draws(config.seed, step, config.batch_size, shape))

    def sampling(step: int) -> Step:
        """With the samples that the student is asked for first; in NASA-T with one strength for the whole step."""
        here = bare(step)
        here.draw_samples(config.start.steps)
        here.batch = batches(number_of(step, 0))
        if config.nasa:
            low, high = config.nasa.alpha
            here.alpha = low + (high - low) * here.draws.uniform().item()
        return here

    guidance = Guidance(config.kappa, config.kappa_per, config.cfg_on, config.fixed_kappa, config.kappa_lora)
    clip_loss = ClipLoss(clip, config.clip, config.batch_size, first_vsd, config.steps, autocast) if clip else None
    of_student = StudentUpdate(one_step, backbone, teachers, guidance, config.vsd, clip_loss, watch_gap)
    lora = (one_step, backbone, teachers, config.lora, batches, number_of)
    of_lora = [LoraUpdate(index, *lora) for index in range(config.lora.updates)]
    own = (config.student.learning_rate, config.student.betas)
    found = [
        Phase("lora", range(config.warm_steps, first_vsd), of_lora, sampling, *own, averaged=True),
        Phase("vsd", range(first_vsd, config.total_steps), [of_student, *of_lora], sampling, *own, averaged=True),
    ]
    if config.warm_start:
        of_pairs = WarmStartUpdate(one_step, pairs, embeddings, config.warm_start.pairs, config.seed)
        rate = config.warm_start.learning_rate
        found.insert(
            0, Phase("warm start", range(config.warm_steps), [of_pairs], bare, rate, (0.9, 0.999), averaged=False)
        )
    return [phase for phase in found if phase.steps]
