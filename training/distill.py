"""PG-SB, from prompts to a student of one step or a few. Read top to bottom.

Three networks on two sets of weights: the student, and one shared network which with its LoRA off is the frozen
teacher and with it on the LoRA teacher. What is trained how, in which phase, is method/pgsb.py; here is what a run is:
it opens or goes on, makes its steps, shows what people watch, and saves.

Every draw of step n comes from a generator seeded by (seed, n), on the CPU: a resumed run needs no stored random
state, and the same run on another device draws the same numbers. Every process draws the whole batch and computes its
own rows of it, so several processes together do what one would.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from .errors import UserError
from .files import check_writable, claimed
from .method.clip import ClipEmbeddings
from .method.guidance import unequal_scales
from .method.one_step import OneStep
from .method.pgsb import Phase, phases
from .method.step import Step
from .method.warm_start import make_pairs
from .networks.adapter import halve_frozen_weights
from .networks.backbones import LatentDiffusion, load_backbone
from .networks.sharding import check_can_shard, shard
from .networks.student import load_student, make_student, student_origin
from .networks.teachers import Teachers
from .prompts.embeddings import PromptEmbeddings
from .prompts.encode import EncodedPrompts, extra_texts
from .prompts.read import read_prompts
from .prompts.repeats import LISTS, NEGATIVE_LISTS, few_prompts
from .recipe.config import Config, flat
from .recipe.savings import remedies
from .run import checkpoint as checkpoints
from .run.checkpoint import Checkpoint
from .run.folder import find_saved, write_config
from .run.machine import (
    any_process,
    check_memory,
    check_one_folder,
    main_first,
    make_accelerator,
    mean_figures,
    memory_gib,
    on_main,
    precision_of,
    shares,
)
from .run.made_of import check_made_of, made_of, text_of, write_made_of
from .run.preview import Preview, preview_noises
from .run.progress import Metrics, ScoreGaps, summary
from .run.trained import Trained
from .run.update import update


def distill(config: Config, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> Path:
    """Runs, or with `resume` continues, the run in config.output; returns the newest checkpoint's folder.

    stop() is asked after every step; once true, the step is saved and KeyboardInterrupt raised.

    Raises UserError for whatever the user can put right, before any work is lost.
    """
    folder = Path(config.output)
    check_writable(folder)
    settings = (config.device, config.mixed_precision, config.tracker)
    accelerator, sharded = make_accelerator(*settings, folder, config.student.shard)
    with ExitStack() as held:
        on_main(accelerator, lambda: held.enter_context(claimed(folder)))
        check_one_folder(accelerator, folder)
        run = open_run(config, resume, stop, accelerator, sharded)
        watch = Watch(run)
        if run.first == 0:
            watch.draw(0)
        train(run, watch, stop)
    return checkpoints.newest_first(folder)[0]


@dataclass
class Run:
    """An open run. parts: this process's rows of the batch, a slice for each forward. first: the step to go on with."""

    config: Config
    accelerator: Accelerator
    sharded: bool
    parts: list[slice]
    backbone: LatentDiffusion
    shape: tuple[int, int, int]
    embeddings: PromptEmbeddings | EncodedPrompts
    trained: Trained
    phases: list[Phase]
    gaps: ScoreGaps
    first: int

    def phase(self, step: int) -> Phase:
        return next(phase for phase in self.phases if step in phase.steps)


# --- the loop -----------------------------------------------------------------------------------------------------
def train(run: Run, watch: "Watch", stop: Callable[[], bool]) -> None:
    """All steps that are left. Raises KeyboardInterrupt once stop() is true, all saved."""
    config, trained, total = run.config, run.trained, run.config.total_steps
    for step in watch.bar:
        phase = run.phase(step)
        trained.begin(phase)
        trained.set_rates(step)
        here = phase.open(step)
        for change in phase.updates:
            optimizer = trained.optimizers[change.role]
            losses = change.losses(here)
            made, norm = update(run.accelerator, run.parts, change.network, losses, optimizer, config.gradient_clip)
            trained.bad_steps += not made
            here.figures[f"{change.role}_grad_norm"] = [norm.view(1)]
            if change.role == "student" and trained.average:
                trained.average.update(step - phase.steps.start)

        done = step + 1
        stopping = any_process(run.accelerator, stop())
        last = done == total or stopping
        watch.step(here, phase, last)
        if done % config.checkpoint_every == 0 or last:
            save(run, done)
        if stopping and done < total:
            watch.bar.close()
            raise KeyboardInterrupt(f"Stopped after step {done}, all saved; go on with --resume.")
    watch.metrics.close()


def save(run: Run, step: int) -> None:
    """All processes join, each for its part of a split student; the first writes."""
    kept = run.trained.checkpoint(step, run.accelerator.is_main_process)
    on_main(run.accelerator, checkpoints.save, Path(run.config.output), kept, run.config.keep_checkpoints)


# --- what people watch --------------------------------------------------------------------------------------------
class Watch:
    """The progress bar, the sample grid, metrics.jsonl, and the end of a run that only skips updates."""

    def __init__(self, run: Run):
        config, self.run = run.config, run
        sampled = run.embeddings.texts(config.sample_prompts)
        noises = preview_noises(config.seed, config.samples_per_prompt, run.shape, config.start.steps)
        drawn = (config.start, noises, config.sample_prompts, sampled)
        self.preview = Preview(Path(config.output), run.backbone, run.trained.student, *drawn)
        self.metrics = Metrics(Path(config.output), run.first, run.accelerator, config.tracker, dict(flat(config)))
        self.bar = tqdm(
            range(run.first, config.total_steps),
            initial=run.first,
            total=config.total_steps,
            unit="step",
            dynamic_ncols=True,
            disable=not run.accelerator.is_main_process,
        )

    def draw(self, step: int) -> None:
        """The sample grid; all processes join where each holds but a part of the student."""
        run = self.run
        joins = run.sharded or run.accelerator.is_main_process
        latents = self.preview.latents(run.trained.average) if joins else None
        on_main(run.accelerator, lambda: self.metrics.pictures(self.preview.save(latents, step), step))

    def step(self, step: Step, phase: Phase, last: bool) -> None:
        """What a step leaves to see. Raises UserError after too many skipped updates."""
        run, config, done, bad_steps = self.run, self.run.config, step.number + 1, self.run.trained.bad_steps
        figures: dict[str, float | Tensor] = {name: torch.cat(values).mean() for name, values in step.figures.items()}
        if step.alpha is not None:
            figures["alpha"] = step.alpha
        if bad_steps > config.max_bad_steps:
            self.bar.close()
            last_known = {key: round(float(value), 4) for key, value in figures.items()}
            raise UserError(
                f"Stopped at step {done}: {bad_steps} updates were skipped because a loss or gradient was NaN or "
                f"Inf (now {last_known}); start again with lower learning rates or `mixed_precision: no`."
            )
        if drawing := done % config.sample_every == 0 or done == config.total_steps:
            self.draw(done)
        if not (done % config.log_every == 0 or drawing or last):
            return
        x0 = torch.cat([step.x0[rows.start] for rows in run.parts])
        figures |= {"x0_mean": x0.mean(), "x0_std": x0.std(), "memory_gib": memory_gib(run.backbone.device)}
        means = mean_figures(run.accelerator, figures) | run.gaps.figures(run.accelerator) | {"bad_steps": bad_steps}
        means |= {f"{change.role}_learning_rate": run.trained.rate(change.role) for change in phase.updates}
        known = {} if self.preview.diversity is None else {"diversity": self.preview.diversity}
        self.metrics.write(done, phase.name, means | (known if drawing else {}))
        self.bar.set_description(phase.name)
        self.bar.set_postfix_str(summary(means | known), refresh=False)


# --- how a run opens ----------------------------------------------------------------------------------------------
def open_run(config: Config, resume: bool, stop: Callable[[], bool], accelerator: Accelerator, sharded: bool) -> Run:
    """A new run, or one that goes on, in a folder that is this process's own. Raises UserError."""
    folder = Path(config.output)
    saved = open_saved(accelerator, folder, config, resume)
    torch.manual_seed(config.seed)  # the adapters' first weights; nothing else draws from the global generator
    device, bf16 = accelerator.device, precision_of(config.mixed_precision, config.device) == "bf16"
    parts = shares(config.batch_size, config.micro_batch, accelerator)
    prompts, negatives = read_lists(config, accelerator)

    backbone = load_backbone(config.backbone, config.teacher, device, config.teacher_parts)
    shape = backbone.latent_shape(config.latent_size)
    backbone.check_start(config.start.timestep, config.start.noise)
    backbone.check_timesteps(latest_timesteps(config, last=len(backbone.alphas) - 1))
    clip = ClipEmbeddings(config.clip, backbone) if config.clip else None
    origin = student_origin(backbone, config.student)
    other, encodes = origin if config.student.start_from else None, not config.encoded_prompts
    contents = on_main(accelerator, made_of, backbone, prompts, negatives, clip, other, encodes)
    on_main(accelerator, check_made_of, folder, contents)
    encoded = (config, backbone, prompts, text_of(contents), stop)
    embeddings = main_first(accelerator, lambda: embeddings_of(*encoded))

    student = make_student(origin, config.student, bf16, nasa=config.nasa is not None)
    if bf16:
        halve_frozen_weights(backbone.network)
    teachers = Teachers(backbone.network, config.lora, backbone.predict)
    if config.gradient_checkpointing:
        for network in (student, teachers.network):
            network.enable_gradient_checkpointing()
    if saved:
        load_student(student, saved.weights["student"])
        teachers.load(saved.weights["lora"])
    if sharded:
        check_can_shard(student, config.optimizer, nasa=config.nasa is not None)
        shard(student, device, accelerator.num_processes)
    of_student = accelerator.prepare_model(student, device_placement=False, evaluation_mode=sharded)  # else: DDP
    teachers.trained = accelerator.prepare(teachers.network)
    averaging = sharded or accelerator.is_main_process  # where all hold the same weights, the first process alone
    of_run = (config.student, config.lora, config.optimizer, config.trained_in)
    trained = Trained(student, teachers, *of_run, averaging)
    weights = trained.weights["student"] + trained.weights["lora"]
    check_memory(config.optimizer, device, weights, remedies(config))

    first, pairs = saved.state["step"] if saved else 0, None
    if first < config.warm_steps:
        made = (config.warm_start, config.seed, backbone, teachers.frozen, embeddings, shape, contents, stop)
        pairs = main_first(accelerator, lambda: make_pairs(folder / "warm_start", *made))
    one_step = OneStep(student, of_student, backbone, config.start, accelerator.autocast, sharded)
    gaps = ScoreGaps(len(backbone.alphas), device)
    networks = (config, backbone, shape, teachers, one_step)
    plan = phases(*networks, embeddings, negatives, clip, pairs, gaps.add, accelerator.autocast)
    run = Run(config, accelerator, sharded, parts, backbone, shape, embeddings, trained, plan, gaps, first)
    if saved:
        trained.load(saved, run.phase(first - 1))
    on_main(accelerator, write_config, folder, config)
    on_main(accelerator, write_made_of, folder, contents)
    return run


def open_saved(accelerator: Accelerator, folder: Path, config: Config, resume: bool) -> Checkpoint | None:
    """What to go on from, in all processes; the first alone tells of it, and compares hashes. Raises UserError."""
    found: list[Checkpoint | None] = [None]

    def find() -> int | None:
        found[0] = find_saved(folder, config, resume)
        return found[0] and found[0].state["step"]

    step = on_main(accelerator, find)
    if step is None or accelerator.is_main_process:
        return found[0]
    return checkpoints.load(checkpoints.folder_of(folder, step), checked=True)


def read_lists(config: Config, accelerator: Accelerator) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts; the first process tells what is odd about them, or about the guidance."""
    with accelerator.main_process_first():  # which may have to fetch them
        prompts = read_prompts(config.prompts, config.prompt_column, config.skip_bad_prompts)
        negatives = read_prompts(config.nasa.prompts) if config.nasa else []
    if accelerator.is_main_process:
        odd = [unequal_scales(config.cfg_on, config.kappa, config.fixed_kappa, config.kappa_lora)]
        odd.append(few_prompts(config.prompts, len(prompts), config.samples, LISTS))
        if config.nasa:
            odd.append(few_prompts(config.nasa.prompts, len(negatives), config.samples, NEGATIVE_LISTS))
        for sentence in filter(None, odd):
            print(f"warning: {sentence}", file=sys.stderr)
    return prompts, negatives


def embeddings_of(
    config: Config, backbone: LatentDiffusion, prompts: list[str], made_of: str, stop: Callable[[], bool]
) -> PromptEmbeddings | EncodedPrompts:
    """The prompts encoded: from a folder where the config names one, else in memory, kept in the run folder, or on the
    fly. made_of: prompts and text encoder. Raises UserError."""
    if not config.encoded_prompts:
        settings = (config.text_cache_megabytes, config.null_prompt)
        return PromptEmbeddings(backbone, prompts, *settings, stop, Path(config.output), made_of)
    extras = extra_texts(config.null_prompt, config.sample_prompts, config.nasa)
    return EncodedPrompts(config.encoded_prompts, config.backbone, extras, backbone, prompts)


def latest_timesteps(config: Config, last: int) -> dict[str, int]:
    """{setting: the latest timestep that it asks for}."""
    found = {
        "start.timestep": config.start.timestep,
        "vsd.timesteps": config.vsd.timesteps[1],
        "vsd.timesteps_lora": (config.vsd.timesteps_lora or config.vsd.timesteps)[1],
        "lora.timesteps": config.lora.timesteps[1],
    }
    return found | ({"warm_start (the teacher's sampler)": last} if config.warm_start else {})
