"""PG-SB, from prompts to a one-step student. Read top to bottom.

Three networks on two sets of weights: the student, and one shared network which with its LoRA off is the frozen
teacher and with it on the LoRA teacher. A run has three phases on one step count: an optional warm start, optional
steps that train the LoRA alone, then VSD.

Every draw of step n comes from a generator seeded by (seed, n), on the CPU: a resumed run needs no stored random
state, and the same run on another device draws the same numbers. Every process draws the whole batch and computes its
own rows of it, so several processes together do what one would.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from .errors import UserError
from .files import check_writable, claimed
from .method.clip import ClipEmbeddings
from .method.draws import STEP, generator
from .method.guidance import draw_kappa, guided, unequal_scales
from .method.losses import (
    LORA_WEIGHTS,
    VSD_WEIGHTS,
    clamped_clip_loss,
    falling_weight,
    lora_loss,
    regression_loss,
    vsd_loss,
)
from .method.warm_start import make_pairs
from .networks.adapter import halve_frozen_weights
from .networks.average import Average
from .networks.backbones import load_backbone
from .networks.nasa import nasa_arguments
from .networks.sharding import check_can_shard, load_optimizer, put_together, shard, whole
from .networks.student import load_student, make_student, student_origin, student_state
from .networks.teachers import Teachers
from .networks.text import Text
from .prompts.embeddings import PromptEmbeddings
from .prompts.encode import EncodedPrompts
from .prompts.order import PromptOrder
from .prompts.read import read_prompts
from .prompts.repeats import few_prompts
from .recipe.config import Config
from .run import checkpoint as checkpoints
from .run.folder import find_saved, write_config
from .run.machine import (
    any_process,
    check_memory,
    gathering,
    make_accelerator,
    make_optimizer,
    mean_figures,
    memory_gib,
    on_main,
    precision_of,
    shares,
)
from .run.made_of import check_made_of, made_of, write_made_of
from .run.preview import Preview
from .run.progress import Metrics, ScoreGaps, summary


def distill(config: Config, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> Path:
    """Runs, or with `resume` continues, the run in config.output; returns the newest checkpoint's folder.

    stop() is asked after every step; once true, the step is saved and KeyboardInterrupt raised.

    Raises UserError for whatever the user can put right, before any work is lost.
    """
    # --- the run folder and the machine ---------------------------------------------------------------------------
    run = Path(config.output)
    check_writable(run)
    accelerator, sharded = make_accelerator(config)
    with ExitStack() as held:
        on_main(accelerator, lambda: held.enter_context(claimed(run)))
        return _distill(config, resume, stop, accelerator, sharded)


def _distill(config: Config, resume: bool, stop: Callable[[], bool], accelerator: Accelerator, sharded: bool) -> Path:
    """`distill` in a run folder that is this process's own."""
    run = Path(config.output)
    saved = find_saved(run, config, resume)
    torch.manual_seed(config.seed)  # the adapters' first weights; nothing else draws from the global generator
    device, bf16 = accelerator.device, precision_of(config) == "bf16"
    parts = shares(config, accelerator)  # this process's rows of the batch, a slice for each forward
    if accelerator.is_main_process and (sentence := unequal_scales(config.cfg_on, config.kappa, config.fixed_kappa)):
        print(f"warning: {sentence}", file=sys.stderr)
    with accelerator.main_process_first():  # which may have to fetch them
        prompts = read_prompts(config.prompts, config.prompt_column, config.skip_bad_prompts)
        negatives = read_prompts(config.nasa.prompts) if config.nasa else []
    if accelerator.is_main_process:
        for sentence in few_prompts(config, prompts, negatives):
            print(f"warning: {sentence}", file=sys.stderr)

    # --- the networks ---------------------------------------------------------------------------------------------
    backbone = load_backbone(config.backbone, config.teacher, device, config.teacher_parts)
    shape = backbone.latent_shape(config.latent_size)
    backbone.check_timesteps(
        {
            "start.timestep": config.start.timestep,
            "vsd.timesteps": config.vsd.timesteps[1],
            "lora.timesteps": config.lora.timesteps[1],
        }
        | ({"warm_start (the teacher's sampler)": len(backbone.alphas) - 1} if config.warm_start else {})
    )
    embeddings = (
        EncodedPrompts(config, backbone, prompts)
        if config.encoded_prompts
        else PromptEmbeddings(backbone, prompts, config.text_cache_megabytes, config.null_prompt, stop)
    )
    if config.nasa:
        negative_order = PromptOrder(len(negatives), config.seed)
    clip = ClipEmbeddings(config.clip, backbone) if config.clip else None
    origin = student_origin(backbone, config.student)
    contents = made_of(config, backbone, prompts, negatives, clip, origin)
    on_main(accelerator, check_made_of, run, contents)

    student = make_student(origin, config.student, bf16, nasa=config.nasa is not None)
    if bf16:
        halve_frozen_weights(backbone.network)
    teachers = Teachers(backbone.network, config.lora, backbone.predict)
    if config.gradient_checkpointing:
        for network in (student, teachers.network):
            network.enable_gradient_checkpointing()

    # --- where the run stands -------------------------------------------------------------------------------------
    warm_steps, first_vsd = config.warm_steps, config.warm_steps + config.lora.initial_steps
    first, bad_steps = 0, 0
    if saved:
        first, bad_steps = saved.state["step"], saved.state["bad_steps"]
        load_student(student, saved.weights["student"])
        teachers.load(saved.weights["lora"])
    if sharded:
        check_can_shard(config, student)
        shard(student, device, accelerator.num_processes)
    trained_student = accelerator.prepare_model(student, device_placement=False, evaluation_mode=sharded)  # else: DDP
    teachers.trained = accelerator.prepare(teachers.network)
    student_weights = [weight for weight in student.parameters() if weight.requires_grad]
    lora_weights = teachers.parameters()
    check_memory(config, device, student_weights + lora_weights)

    def average_for(step: int) -> Average | None:
        """The EMA, which begins with VSD; where all processes hold the same weights, in the first one only."""
        if config.student.ema_decay is None or step < warm_steps or not (sharded or accelerator.is_main_process):
            return None
        settings = config.student
        return Average(student, settings.ema_decay, settings.ema_ramp, settings.ema_device == "cpu")

    def student_optimizer_for(step: int) -> torch.optim.Optimizer:
        settings = config.student
        rate, betas = settings.learning_rate, settings.betas
        if config.warm_start and step < warm_steps:
            rate, betas = config.warm_start.learning_rate, (0.9, 0.999)
        return make_optimizer(config.optimizer, student_weights, rate, betas, settings.weight_decay)

    average = average_for(first - 1) if saved else None
    student_optimizer = student_optimizer_for(first - 1 if saved else first)  # of the phase that was saved
    lora_optimizer = make_optimizer(
        config.optimizer, lora_weights, config.lora.learning_rate, config.lora.betas, config.lora.weight_decay
    )
    if saved:
        load_optimizer(student_optimizer, saved.optimizers["student"])
        lora_optimizer.load_state_dict(saved.optimizers["lora"])
        if average and "ema" in saved.weights:
            average.load(saved.weights["student"] | saved.weights["ema"])
        saved = None

    order = PromptOrder(len(prompts), config.seed)
    batches_a_step = config.lora.updates if config.lora.fresh and config.lora.fresh_prompts else 1
    if first < warm_steps:
        shared = (config.warm_start, config.seed, backbone, teachers.frozen, embeddings, shape, contents, stop)
        on_main(accelerator, make_pairs, run / "warm_start", *shared)
        pairs = make_pairs(run / "warm_start", *shared)
        pair_order = PromptOrder(config.warm_start.pairs, config.seed)

    # --- one sample, one update, one checkpoint -------------------------------------------------------------------
    def student_x0(network: nn.Module, z: Tensor, text: Text, negative: Text | None = None, alpha: float = 0) -> Tensor:
        """The student's picture of each prompt, [n, c, h, w]; with `negative` steered away from that (NASA)."""
        steering = {}
        if negative is not None:
            with accelerator.autocast():
                steering = nasa_arguments(student, negative.embeddings, alpha, negative.mask)
        return backbone.one_step(network, z.to(device), text, config.start.timestep, config.start.noise, **steering)

    def read_batch(
        step: int, number: int, alpha: float | None
    ) -> tuple[list[int], list[Text], list[Text], list[tuple[()] | tuple[Text, float]]]:
        """Batch `number` of a step: prompts, and encoded, a part each: them, what the frozen teacher's CFG goes away
        from (the null prompt; in NASA-T a negative one), and what the student does (nothing; that, by alpha)."""
        position = ((step - warm_steps) * batches_a_step + number) * config.batch_size
        chosen = order.batch(position, config.batch_size)
        texts = [embeddings.batch(chosen[rows]) for rows in parts]
        if alpha is None:
            return chosen, texts, [embeddings.nulls(len(text)) for text in texts], [()] * len(parts)
        avoided = negative_order.batch(position, config.batch_size)
        away = [embeddings.texts([negatives[index] for index in avoided[rows]]) for rows in parts]
        return chosen, texts, away, [(negative, alpha) for negative in away]

    def apply(losses: list[Tensor], optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> dict[str, Tensor]:
        """Clips and applies the gradients of all parts; NaN or Inf leaves weights and optimiser as they are.

        Returns mean loss and gradient norm.
        """
        nonlocal bad_steps
        loss = accelerator.reduce(torch.stack(losses).mean(), "mean")
        norm = whole(accelerator.clip_grad_norm_(weights, config.gradient_clip))
        if bool(torch.isfinite(norm) & torch.isfinite(loss)):
            optimizer.step()
        else:
            bad_steps += 1
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": norm}

    def save(step: int) -> None:
        """All processes join, each for its part of a split student; the first writes."""
        first_process = accelerator.is_main_process
        weights = {"student": put_together(student_state(student), first_process), "lora": teachers.state()}
        if average:
            weights["ema"] = average.state(first_process)
        states = {"student": student_optimizer.state_dict(), "lora": lora_optimizer.state_dict()}
        kept = checkpoints.Checkpoint(
            weights, put_together(states, first_process), {"step": step, "bad_steps": bad_steps}
        )
        on_main(accelerator, checkpoints.save, run, kept, config.keep_checkpoints)

    # --- what people watch ----------------------------------------------------------------------------------------
    on_main(accelerator, write_config, run, config)
    on_main(accelerator, write_made_of, run, contents)
    preview = Preview(config, backbone, shape, student, embeddings.texts(config.sample_prompts))
    metrics = Metrics(run, first, accelerator, config)
    gaps = ScoreGaps(len(backbone.alphas), device)

    def draw(step: int) -> None:
        """The sample grid; all processes join where each holds but a part of the student."""
        latents = preview.latents(average) if sharded or accelerator.is_main_process else None
        on_main(accelerator, lambda: metrics.pictures(preview.save(latents, step), step))

    if first == 0:
        draw(0)

    # --- the loop -------------------------------------------------------------------------------------------------
    bar = tqdm(
        range(first, config.total_steps),
        initial=first,
        total=config.total_steps,
        unit="step",
        dynamic_ncols=True,
        disable=not accelerator.is_main_process,
    )
    for step in bar:
        if step == warm_steps:
            average = average_for(step)
            if step > 0:  # VSD begins with an optimiser that has not seen the regression
                student_optimizer = student_optimizer_for(step)
        random = generator(config.seed, STEP, step)
        figures: dict[str, float | Tensor] = {}

        def draw_latents(random: torch.Generator = random) -> Tensor:
            return torch.randn((config.batch_size, *shape), generator=random)

        def draw_timesteps(bounds: tuple[int, int], random: torch.Generator = random) -> Tensor:
            return torch.randint(bounds[0], bounds[1] + 1, (config.batch_size,), generator=random)

        if step < warm_steps:
            phase, losses, samples = "warm start", [], []
            chosen = pair_order.batch(step * config.batch_size, config.batch_size)
            for rows in parts:
                with gathering(accelerator, trained_student, last=rows is parts[-1]):
                    pair = {name: tensor[chosen[rows]] for name, tensor in pairs.items()}
                    x0 = student_x0(trained_student, pair["z"], embeddings.batch(pair["prompt"].tolist()))
                    loss = regression_loss(x0, pair["x0"].to(device))
                    accelerator.backward(loss / len(parts))
                losses.append(loss.detach())
                samples.append(x0.detach())
            done = apply(losses, student_optimizer, student_weights)
            figures |= {"regression_loss": done["loss"], "student_grad_norm": done["grad_norm"]}
        else:
            phase = "lora" if step < first_vsd else "vsd"
            z = draw_latents()
            alpha = None
            if config.nasa:  # ---- NASA-T: one strength for the whole step
                low, high = config.nasa.alpha
                alpha = figures["alpha"] = low + (high - low) * torch.rand((), generator=random).item()
            chosen, texts, away, steering = read_batch(step, 0, alpha)
            nulls = [embeddings.nulls(len(text)) for text in texts]

            losses, samples = [], []
            if phase == "vsd":  # ---- the student's update
                scales = config.batch_size if config.kappa_per == "sample" else 1
                random_kappa = draw_kappa(config.kappa, random, scales)
                t, noise = draw_timesteps(config.vsd.timesteps), draw_latents()
                progress = (step - first_vsd, config.steps)
                for rows, text, null, unwanted, steer in zip(parts, texts, nulls, away, steering, strict=True):
                    kappa = random_kappa[rows if scales > 1 else slice(None)].to(device)
                    kappa_teacher = kappa if config.cfg_on in ("both", "teacher") else config.fixed_kappa
                    kappa_lora = kappa if config.cfg_on in ("both", "lora") else config.fixed_kappa
                    with gathering(accelerator, trained_student, last=rows is parts[-1]):
                        x0 = student_x0(trained_student, z[rows], text, *steer)
                        t_rows = t[rows].to(device)
                        x_t = backbone.add_noise(x0.detach(), noise[rows].to(device), t_rows)
                        eps_teacher = guided(teachers.frozen, x_t, t_rows, text, unwanted, kappa_teacher)
                        eps_lora = guided(teachers.lora, x_t, t_rows, text, null, kappa_lora)
                        weigh, cap = VSD_WEIGHTS[config.vsd.weight], config.vsd.x0_weight_cap
                        weight = weigh(*backbone.coefficients(t_rows), cap)
                        loss = vsd_loss(x0, eps_teacher, eps_lora, weight)
                        figures["vsd_loss"] = figures.get("vsd_loss", 0) + loss.detach() / len(parts)
                        if clip:
                            seen = range(-(-rows.start // clip.one_in) * clip.one_in, rows.stop, clip.one_in)
                            clip_weight = falling_weight(config.clip.weight, config.clip.final_weight, *progress)
                            clip_loss = x0.new_zeros(())
                            if seen:
                                with accelerator.autocast():
                                    shown = [row - rows.start for row in seen]
                                    near = clip(x0[shown], [prompts[chosen[row]] for row in seen])
                                # A mean over the samples of the batch that get it, whatever its size.
                                share = config.batch_size / len(range(0, config.batch_size, clip.one_in))
                                clip_loss = clamped_clip_loss(*near, config.clip.margin) * share / len(x0)
                            loss = loss + clip_weight * clip_loss
                            figures["clip_loss"] = figures.get("clip_loss", 0) + clip_loss.detach() / len(parts)
                        accelerator.backward(loss / len(parts))
                    losses.append(loss.detach())
                    samples.append(x0.detach())
                    gaps.add(t_rows, eps_teacher - eps_lora)
                done = apply(losses, student_optimizer, student_weights)
                if average:
                    average.update(step - first_vsd)
                figures |= {"kappa": random_kappa.mean(), "student_grad_norm": done["grad_norm"]}

            for index in range(config.lora.updates):  # ---- the LoRA teacher's updates
                if index and config.lora.fresh:
                    z, samples = draw_latents(), []
                    if config.lora.fresh_prompts:
                        _, texts, _, steering = read_batch(step, index, alpha)
                if not samples:
                    with torch.no_grad():
                        each = zip(parts, texts, steering, strict=True)
                        samples = [student_x0(student, z[rows], text, *steer) for rows, text, steer in each]
                t, noise = draw_timesteps(config.lora.timesteps), draw_latents()
                blind = torch.rand((), generator=random) < config.lora.null_probability
                losses = []
                for rows, x0, seen in zip(parts, samples, nulls if blind else texts, strict=True):
                    with gathering(accelerator, teachers.trained, last=rows is parts[-1]):
                        t_rows, noise_rows = t[rows].to(device), noise[rows].to(device)
                        eps = teachers.lora_in_training(backbone.add_noise(x0, noise_rows, t_rows), t_rows, seen)
                        weight = LORA_WEIGHTS[config.lora.weight](backbone.coefficients(t_rows)[0])
                        loss = lora_loss(eps, noise_rows, weight)
                        accelerator.backward(loss / len(parts))
                    losses.append(loss.detach())
                done = apply(losses, lora_optimizer, lora_weights)
                figures |= {"lora_loss": done["loss"], "lora_grad_norm": done["grad_norm"]}

        # --- what people watch ------------------------------------------------------------------------------------
        done_steps = step + 1
        if bad_steps > config.max_bad_steps:
            bar.close()
            last_known = {key: round(float(value), 4) for key, value in figures.items()}
            raise UserError(
                f"Stopped at step {done_steps}: {bad_steps} updates were skipped because a loss or gradient was NaN or "
                f"Inf (now {last_known}); start again with lower learning rates or `mixed_precision: no`."
            )
        stopping = any_process(accelerator, stop())
        last_step = done_steps == config.total_steps or stopping
        if drawing := done_steps % config.sample_every == 0 or done_steps == config.total_steps:
            draw(done_steps)
        if done_steps % config.log_every == 0 or drawing or last_step:
            x0 = torch.cat(samples)
            figures |= {"x0_mean": x0.mean(), "x0_std": x0.std(), "memory_gib": memory_gib(device)}
            figures = mean_figures(accelerator, figures) | gaps.figures(accelerator) | {"bad_steps": bad_steps}
            known = {} if preview.diversity is None else {"diversity": preview.diversity}
            metrics.write(done_steps, phase, figures | (known if drawing else {}))
            bar.set_description(phase)
            bar.set_postfix_str(summary(figures | known), refresh=False)
        if done_steps % config.checkpoint_every == 0 or last_step:
            save(done_steps)
        if stopping and done_steps < config.total_steps:
            bar.close()
            raise KeyboardInterrupt(f"Stopped after step {done_steps}, all saved; go on with --resume.")
    metrics.close()
    return checkpoints.newest_first(run)[0]
