"""SNOOPI Model Sampling: stock samplers run a one-step or few-step model as its authors did."""

from comfy_api.latest import io, ui

from .connected import check_model, check_numbers, check_steps
from .preset_choice import HIDDEN, latent_input, preset_for, preset_input, steps_input, tables_now
from .quoting import printable_errors, show
from .sampling.one_step import with_preset
from .sampling.saved import saying
from .schema import schema


class SNOOPIModelSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SNOOPIModelSampling",
            display_name="SNOOPI Model Sampling",
            category="SNOOPI",
            description=(
                "Lets KSampler and SamplerCustom run a one-step or few-step model as its authors did. Set the steps, "
                "the sampler and the CFG that this node names, and the scheduler simple."
            ),
            search_aliases=["ModelSampling", "ModelSamplingDiscrete", "timestep", "one step", "DMD2", "LCM", "NitroSD"],
            inputs=[
                io.Model.Input("model", tooltip="A one-step or few-step model. It is not changed itself."),
                preset_input(),
                latent_input(),
                steps_input(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The model, for any sampler."),
                io.String.Output(display_name="info", tooltip="Which preset was taken, why, and what to set."),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        return tables_now()

    @classmethod
    @printable_errors
    def execute(cls, model, preset, latent_image=None, steps=0) -> io.NodeOutput:
        check_model(model)
        check_numbers(steps=steps)
        check_steps(steps)
        choice = preset_for(cls, model, preset, latent_image, steps)
        taken = choice.preset
        model = with_preset(model, taken)
        count = "1 step" if len(taken.timesteps) == 1 else f"{len(taken.timesteps)} steps"
        sampler = model.get_model_object("model_sampling").sampler
        told = f"{choice.said} Set the KSampler to {count}, CFG {taken.cfg:g}, {sampler}, simple."
        if taken.gamma:
            told += " It leaves out the new noise between the steps: only the SNOOPI One-Step Sampler adds it."
        if taken.stage:
            first, end = taken.stage
            told += f" It must be a KSampler (Advanced) that starts at step {first} and ends at step {end}"
            told += ", with add_noise disabled." if first else ", and returns with leftover noise."
        info = show(cls, told, choice.details)
        return io.NodeOutput(saying(model, taken) if choice.known else model, info, ui=ui.PreviewText(info))
