"""PG-SB, from prompts to a one-step student. Read top to bottom.

Three networks on two sets of weights: the student, and one shared UNet which with its LoRA off is the frozen teacher
and with it on the LoRA teacher. A run has three phases on one step count: an optional warm start, optional steps that
train the LoRA alone, then VSD.

Every draw of step n comes from a generator seeded by (seed, n), on the CPU: a resumed run needs no stored random
state, and the same run on another device draws the same numbers.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint as checkpoints
from .backbones.stable_diffusion import StableDiffusion
from .config import Config
from .embeddings import PromptEmbeddings
from .errors import UserError
from .guidance import draw_kappa, guided
from .losses import LORA_WEIGHTS, VSD_WEIGHTS, lora_loss, regression_loss, vsd_loss
from .preview import save_grid
from .progress import Metrics, summary
from .prompts import PromptOrder, read_prompts
from .runs import find_saved, write_config
from .teachers import Teachers
from .warm_start import make_pairs

STEP, PREVIEW = 0, 1  # which stream of random numbers


def distill(config: Config, resume: bool = False, stop: Callable[[], bool] = lambda: False) -> Path:
    """Runs, or with `resume` continues, the run in config.output; returns the newest checkpoint's folder.

    stop() is asked after every step; once true, the step is saved and KeyboardInterrupt raised.

    Raises UserError for whatever the user can put right, before any work is lost.
    """
    # --- the run folder -------------------------------------------------------------------------------------------
    run = Path(config.output)
    saved = find_saved(run, config, resume)
    prompts = read_prompts(config.prompts)

    # --- the machine ----------------------------------------------------------------------------------------------
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no GPU here; write `device: auto` or `device: cpu`.")
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if on_cpu:
        torch.set_flush_denormal(True)  # Adam's tiny second moments are slow as denormals
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if not on_cpu and torch.cuda.is_bf16_supported() else "no"
    torch.manual_seed(config.seed)  # the adapter's first weights; nothing else draws from the global generator
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
    device = accelerator.device

    # --- the networks ---------------------------------------------------------------------------------------------
    backbone = StableDiffusion(config.teacher, device)
    shape = backbone.latent_shape(config.latent_size)
    last = len(backbone.alphas) - 1
    ends = {"start.timestep": config.start.timestep, "vsd.timesteps": config.vsd.timesteps[1]}
    for key, value in (ends | {"lora.timesteps": config.lora.timesteps[1]}).items():
        if value > last:
            raise UserError(f"{key} goes to {value}; the schedule of {config.teacher} ends at {last}.")
    embeddings = PromptEmbeddings(backbone, prompts, config.text_cache_megabytes)
    preview_text = backbone.encode(config.sample_prompts)

    student: nn.Module = copy.deepcopy(backbone.unet).requires_grad_(
        True
    )  # fp32 masters: a 1e-6 update vanishes in bf16
    if precision == "bf16":
        halve_frozen_weights(backbone.unet)
    teachers = Teachers(backbone.unet, config.lora, backbone.predict)
    ema: dict[str, Tensor] | None = None

    def student_x0(z: Tensor, text: Tensor) -> Tensor:
        return backbone.one_step(student, z, text, config.start.timestep, config.start.noise)

    # --- where the run stands -------------------------------------------------------------------------------------
    warm_steps, first_vsd = config.warm_steps, config.warm_steps + config.lora.initial_steps
    first, bad_steps = 0, 0
    if saved:
        first, bad_steps = saved.state["step"], saved.state["bad_steps"]
        student.load_state_dict(saved.weights["student"])
        teachers.load(saved.weights["lora"])
        if "ema" in saved.weights:
            # in the network's own order, which a safetensors file does not keep
            ema = {name: saved.weights["ema"][name].to(device) for name, _ in student.named_parameters()}

    def student_optimizer_for(step: int) -> torch.optim.Optimizer:
        if config.warm_start and step < warm_steps:
            return adamw(
                student.parameters(), config.warm_start.learning_rate, (0.9, 0.999), config.student.weight_decay
            )
        return adamw(
            student.parameters(), config.student.learning_rate, config.student.betas, config.student.weight_decay
        )

    student_optimizer = student_optimizer_for(first - 1 if saved else first)  # of the phase that was saved
    lora_optimizer = adamw(
        teachers.parameters(), config.lora.learning_rate, config.lora.betas, config.lora.weight_decay
    )
    if saved:
        student_optimizer.load_state_dict(saved.optimizers["student"])
        lora_optimizer.load_state_dict(saved.optimizers["lora"])
    student, student_optimizer = accelerator.prepare(student, student_optimizer)
    teachers.network, lora_optimizer = accelerator.prepare(teachers.network, lora_optimizer)

    order = PromptOrder(len(prompts), config.seed)
    if first < warm_steps:
        shared = (config.warm_start, config.seed, backbone.sampler, teachers.frozen, embeddings, shape)
        pairs = make_pairs(run / "warm_start", *shared)
        pair_order = PromptOrder(config.warm_start.pairs, config.seed)

    # --- one update, one checkpoint, one picture ------------------------------------------------------------------
    def update(loss: Tensor, optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> float:
        """Backward, clip, step; returns the gradient norm. NaN or Inf leaves weights and optimiser as they are."""
        nonlocal bad_steps
        accelerator.backward(loss)
        norm = float(accelerator.clip_grad_norm_(weights, config.gradient_clip))
        if numpy.isfinite(norm) and bool(torch.isfinite(loss.detach())):
            optimizer.step()
        else:
            bad_steps += 1
        optimizer.zero_grad(set_to_none=True)
        return norm

    def save(step: int) -> Path:
        weights = {"student": accelerator.unwrap_model(student).state_dict(), "lora": teachers.state()}
        optimizers = {"student": student_optimizer.state_dict(), "lora": lora_optimizer.state_dict()}
        state = {"step": step, "bad_steps": bad_steps}
        kept = checkpoints.Checkpoint(weights | ({"ema": ema} if ema else {}), optimizers, state)
        return checkpoints.save(run, kept, config.keep_checkpoints)

    @torch.no_grad()
    def preview(step: int) -> float:
        """Draws the grid, of the averaged weights where there are any; returns the diversity figure.

        Diversity: standard deviation of x0 across noises of the same prompt, averaged over pixels and prompts.
        """
        rows, columns = len(config.sample_prompts), config.samples_per_prompt
        noises = torch.randn((columns, *shape), generator=generator(config.seed, PREVIEW, 0)).to(device)
        network = (lambda *args, **named: torch.func.functional_call(student, ema, args, named)) if ema else student
        latents = []
        for text in preview_text:
            expanded = text.expand(columns, -1, -1)
            latents.append(backbone.one_step(network, noises, expanded, config.start.timestep, config.start.noise))
        grid = backbone.decode(torch.cat(latents))
        save_grid(
            run / "samples" / f"step-{step:08d}.png",
            config.sample_prompts,
            grid.reshape(rows, columns, *grid.shape[1:]),
        )
        return torch.stack(latents).std(dim=1).mean().item()

    # --- the loop -------------------------------------------------------------------------------------------------
    write_config(run, config)
    student_weights, lora_weights = list(student.parameters()), teachers.parameters()
    metrics = Metrics(run / "metrics.jsonl", first)
    diversity = preview(first) if first == 0 else None
    bar = tqdm(
        range(first, config.total_steps), initial=first, total=config.total_steps, unit="step", dynamic_ncols=True
    )
    for step in bar:
        if step == warm_steps and step > 0:  # VSD begins with an optimiser that has not seen the regression
            student_optimizer = accelerator.prepare(student_optimizer_for(step))
        if step == warm_steps and config.student.ema_decay is not None:
            ema = {
                name: weight.detach().clone() for name, weight in accelerator.unwrap_model(student).named_parameters()
            }
        random = generator(config.seed, STEP, step)
        figures: dict[str, float | Tensor | None] = {}

        def noise_like_latents(random: torch.Generator = random) -> Tensor:
            return torch.randn((config.batch_size, *shape), generator=random).to(device)

        def timesteps(bounds: tuple[int, int], random: torch.Generator = random) -> Tensor:
            return torch.randint(bounds[0], bounds[1] + 1, (config.batch_size,), generator=random).to(device)

        if step < warm_steps:
            phase = "warm start"
            rows = pair_order.batch(step * config.batch_size, config.batch_size)
            z, target = pairs["z"][rows].to(device), pairs["x0"][rows].to(device)
            x0 = student_x0(z, embeddings.batch(pairs["prompt"][rows].tolist()))
            loss = regression_loss(x0, target)
            figures |= {
                "regression_loss": loss.detach(),
                "student_grad_norm": update(loss, student_optimizer, student_weights),
            }
            x0 = x0.detach()
        else:
            phase = "lora" if step < first_vsd else "vsd"
            chosen = order.batch((step - warm_steps) * config.batch_size, config.batch_size)
            text, null = embeddings.batch(chosen), embeddings.nulls(config.batch_size)
            with torch.set_grad_enabled(phase == "vsd"):
                x0 = student_x0(noise_like_latents(), text)

            if phase == "vsd":  # ---- the student's update
                kappa = draw_kappa(config.kappa, random)
                kappa_teacher = kappa if config.cfg_on in ("both", "teacher") else 1.0
                kappa_lora = kappa if config.cfg_on in ("both", "lora") else 1.0
                t, noise = timesteps(config.vsd.timesteps), noise_like_latents()
                with torch.no_grad():
                    x_t = backbone.add_noise(x0, noise, t)
                    eps_teacher = guided(teachers.frozen, x_t, t, text, null, kappa_teacher)
                    eps_lora = guided(teachers.lora, x_t, t, text, null, kappa_lora)
                weight = VSD_WEIGHTS[config.vsd.weight](*backbone.coefficients(t), config.vsd.x0_weight_cap)
                loss = vsd_loss(x0, eps_teacher, eps_lora, weight)
                norm = update(loss, student_optimizer, student_weights)
                if ema is not None:
                    torch._foreach_lerp_(list(ema.values()), student_weights, 1 - config.student.ema_decay)
                gap = (eps_teacher - eps_lora).square().mean().sqrt()
                figures |= {"kappa": kappa, "vsd_loss": loss.detach(), "score_gap": gap, "student_grad_norm": norm}
                x0 = x0.detach()

            for index in range(config.lora.updates):  # ---- the LoRA teacher's updates
                if index and config.lora.fresh:
                    with torch.no_grad():
                        x0 = student_x0(noise_like_latents(), text)
                t, noise = timesteps(config.lora.timesteps), noise_like_latents()
                seen = null if torch.rand((), generator=random) < config.lora.null_probability else text
                eps = teachers.lora(backbone.add_noise(x0, noise, t), t, seen)
                loss = lora_loss(eps, noise, LORA_WEIGHTS[config.lora.weight](backbone.coefficients(t)[0]))
                norm = update(loss, lora_optimizer, lora_weights)
                figures |= {"lora_loss": loss.detach(), "lora_grad_norm": norm}

        # --- what people watch ------------------------------------------------------------------------------------
        done = step + 1
        if bad_steps > config.max_bad_steps:
            bar.close()
            last_known = {key: round(float(value), 4) for key, value in figures.items()}
            raise UserError(
                f"Stopped at step {done}: {bad_steps} updates were skipped because a loss or gradient was NaN or Inf "
                f"(now {last_known}); start again with lower learning rates or `mixed_precision: no`."
            )
        stopping = stop()
        last_step = done == config.total_steps or stopping
        if done % config.sample_every == 0 or done == config.total_steps:
            diversity = figures["diversity"] = preview(done)
        if done % config.log_every == 0 or "diversity" in figures or last_step:
            figures |= {"x0_mean": x0.mean(), "x0_std": x0.std(), "bad_steps": bad_steps}
            figures = {key: float(value) for key, value in figures.items()}
            metrics.write({"step": done, "phase": phase} | figures)
            bar.set_description(phase)
            bar.set_postfix_str(
                summary(figures | ({"diversity": diversity} if diversity is not None else {})), refresh=False
            )
        if done % config.checkpoint_every == 0 or last_step:
            save(done)
        if stopping and done < config.total_steps:
            bar.close()
            raise KeyboardInterrupt(f"Stopped after step {done}, all saved; go on with --resume.")
    return run / "checkpoints" / f"step-{config.total_steps:08d}"


def adamw(weights, learning_rate: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(weights, lr=learning_rate, betas=betas, weight_decay=weight_decay)


def generator(*key: int) -> torch.Generator:
    """A CPU generator for this key, independent of those for other keys."""
    return torch.Generator().manual_seed(int(numpy.random.SeedSequence(key).generate_state(1, numpy.uint64)[0]))


def halve_frozen_weights(network: nn.Module) -> None:
    """bf16 for matrices and convolutions, which autocast would cast anew in every forward; norms stay fp32."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(torch.bfloat16)
