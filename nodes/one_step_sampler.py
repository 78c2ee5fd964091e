"""SNOOPI One-Step Sampler: a one-step model run as it was trained, with an optional negative prompt."""

import latent_preview
from comfy_api.latest import io

from .guidance.conditioning import check_conditioning
from .guidance.payload import patch
from .nasa_patch import ALPHA_TOOLTIP
from .sampling.one_step import one_step_model, sample
from .sampling.presets import find_preset, read_presets
from .schema import schema


class SNOOPIOneStepSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SNOOPIOneStepSampler",
            display_name="SNOOPI One-Step Sampler",
            category="SNOOPI",
            description=(
                "Makes a picture in one step with a one-step model, from the noise and the timestep it was trained "
                "with. A negative prompt works too, by NASA."
            ),
            search_aliases=["one step", "single step", "1 step", "SNOOPI", "PG-SB", "SwiftBrush", "turbo", "KSampler"],
            inputs=[
                io.Model.Input("model", tooltip="A one-step model; LoRAs and other patches on it are used."),
                io.Conditioning.Input("positive", tooltip="What should be in the picture: a CLIP Text Encode."),
                io.Latent.Input("latent_image", tooltip="The size of the picture and how many: an Empty Latent Image."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The number the noise is drawn from: the same noise as a KSampler with this seed.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(read_presets()),
                    default="sd",
                    tooltip=(
                        "How the model was trained to start. sd: SNOOPI and most one-step models of SD 1.5 and 2.1. "
                        "snoopi-shapes: the demo model of this pack."
                    ),
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What should not be in the picture: a CLIP Text Encode. Leave it unconnected for none.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.5,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    tooltip=f"{ALPHA_TOOLTIP} Does nothing without a negative prompt.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The picture as a latent, ready for VAE Decode.")],
        )

    @classmethod
    def execute(cls, model, positive, latent_image, seed, preset, negative=None, alpha=0.5) -> io.NodeOutput:
        check_conditioning("positive", positive, model.model.model_config.unet_config.get("context_dim"))
        model, sigmas = one_step_model(model, find_preset(preset))
        if negative is not None:
            model = patch(model, negative, alpha)
        callback = latent_preview.prepare_callback(model, 1)
        return io.NodeOutput(sample(model, sigmas, positive, latent_image, seed, callback))
