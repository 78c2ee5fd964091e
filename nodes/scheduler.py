"""SNOOPI One-Step Scheduler: the sigmas of a preset, for SamplerCustomAdvanced."""

from comfy_api.latest import io

from .connected import check_model, check_numbers, check_steps
from .preset_choice import HIDDEN, latent_input, preset_for, preset_input, steps_input, tables_now
from .quoting import printable_errors, show
from .sampling.one_step import steps as sigmas_of
from .sampling.one_step import with_preset
from .schema import schema


class SNOOPIOneStepScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SNOOPIOneStepScheduler",
            display_name="SNOOPI One-Step Scheduler",
            category="SNOOPI",
            description=(
                "The steps of a one-step or few-step model, for SamplerCustom and SamplerCustomAdvanced. Put SNOOPI "
                "Model Sampling before the guider, so that the first noise is right too."
            ),
            search_aliases=["sigmas", "scheduler", "one step", "DMD2", "LCM"],
            inputs=[
                io.Model.Input("model", tooltip="The model that is sampled."),
                preset_input(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much of a picture may change: the listed timesteps above it are left out.",
                ),
                latent_input(),
                steps_input(),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS", tooltip="The noise level of every step, the last 0.")],
            hidden=HIDDEN,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        return tables_now()

    @classmethod
    @printable_errors
    def execute(cls, model, preset, denoise=1.0, latent_image=None, steps=0) -> io.NodeOutput:
        check_model(model)
        check_numbers(denoise=denoise, steps=steps)
        check_steps(steps)
        choice = preset_for(cls, model, preset, latent_image, steps)
        show(cls, choice.said)
        return io.NodeOutput(sigmas_of(with_preset(model, choice.preset), denoise)[1])
