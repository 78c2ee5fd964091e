"""A teacher's noise schedule, from its scheduler_config.json; and the schedules that PG-SB cannot follow."""

from typing import Any

from diffusers import DDIMScheduler

from ...errors import UserError, quoted, quoted_value

#: diffusers' schedulers that add noise by betas, as DDPM does. Others (flow matching, EDM) name no betas, and those
#: that their config leaves out would be filled in by default.
BETAS = {
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
        *("DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete"),
        *("EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete"),
        *("PNDM", "SASolver", "TCD", "UniPCMultistep"),
    )
}


def read_schedule(config: dict[str, Any], source: str) -> tuple[DDIMScheduler, str]:
    """A deterministic DDIM sampler on the teacher's betas, whose `alphas_cumprod` are the schedule; and what the
    denoiser predicts: epsilon or v_prediction. Raises UserError.
    """
    name = config.get("_class_name", "DDIMScheduler")
    prediction = config.get("prediction_type", "epsilon")
    if name not in BETAS or config.get("use_flow_sigmas"):
        flow = " with flow sigmas" if name in BETAS else ""
        raise UserError(
            f"The teacher {quoted(source)} has the scheduler {quoted(name)}{flow}; PG-SB here needs a "
            f"schedule of betas, as Stable Diffusion 1.x, 2.x and PixArt have (DDIM, DDPM, Euler, DPM++). Of "
            f"flow models SD 3.x has one of its own: `backbone: stable_diffusion3`."
        )
    if prediction not in ("epsilon", "v_prediction"):
        raise UserError(
            f"The teacher {quoted(source)} predicts {quoted(prediction)}; PG-SB needs epsilon or v_prediction."
        )
    if config.get("trained_betas") is None and not {"beta_start", "beta_end", "beta_schedule"} <= config.keys():
        raise UserError(
            f"The scheduler_config.json of the teacher {quoted(source)} names no betas (beta_start, beta_end, "
            f"beta_schedule); copy it again."
        )
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 2 <= steps <= 100_000:
        raise UserError(
            f"The scheduler of the teacher {quoted(source)} has num_train_timesteps {quoted_value(steps)}; PG-SB needs "
            f"a whole number, 1000 as a rule."
        )
    try:
        # Trailing spacing starts at the last timestep, where the noise that goes in is the noise of the schedule.
        sampler = DDIMScheduler.from_config(
            config,
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=True,
            thresholding=False,
            prediction_type="epsilon",  # `predict` gives eps, whatever the network does
        )
        left = sampler.alphas_cumprod.double()  # falls from nearly 1 to nearly 0
        falls = len(left) == steps and bool((left[1:] <= left[:-1]).all() and 0 <= left[-1] < left[0] <= 1)
    except Exception as error:  # whatever torch makes of odd numbers
        raise UserError(
            f"The scheduler of the teacher {quoted(source)} cannot be read ({quoted(error)}); copy it again."
        ) from None
    if not falls:
        raise UserError(
            f"The betas of the teacher {quoted(source)} make no noise schedule (beta_start "
            f"{quoted(config.get('beta_start'))}, beta_end {quoted(config.get('beta_end'))}); copy its scheduler again."
        )
    return sampler, prediction
