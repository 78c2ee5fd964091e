"""SNOOPI One-Step Sampler: a one-step or few-step model run as it was trained, with an optional negative prompt."""

import latent_preview
from comfy_api.latest import io, ui

from .connected import check_model, check_numbers, check_seed, check_steps
from .empty_prompt import without_empty
from .guidance.conditioning import check_conditioning
from .guidance.kept import kept_for_clones
from .guidance.layouts import text_width
from .guidance.payload import AUTO, patch
from .nasa_patch import NEGATIVE_TOOLTIP, SEARCHED, SUITING, alpha_input
from .preset_choice import HIDDEN, preset_for, preset_input, steps_input, tables_now
from .quoting import printable_errors, show
from .sampling.detect import alpha_of
from .sampling.latent import checked_latent
from .sampling.one_step import reads_unconditional, sample, with_preset
from .sampling.one_step import steps as sigmas_of
from .schema import schema


class SNOOPIOneStepSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SNOOPIOneStepSampler",
            display_name="SNOOPI One-Step Sampler",
            category="SNOOPI",
            description=(
                "Makes a picture with a one-step or few-step model, from the noise and the timesteps it was trained "
                "with. A negative prompt works too, by NASA."
            ),
            search_aliases=["one step", "single step", "1 step", "SNOOPI", "PG-SB", "SwiftBrush", "turbo", "KSampler",
                            "DMD2", "Lightning", "Hyper-SD", "LCM", "InstaFlow", "YOSO", "NitroSD", *SEARCHED],
            inputs=[
                io.Model.Input("model", tooltip="A one-step model; LoRAs and other patches on it are used."),
                io.Conditioning.Input("positive", tooltip="What should be in the picture: a CLIP Text Encode."),
                io.Latent.Input(
                    "latent_image",
                    tooltip=(
                        "The size of the picture and how many: an Empty Latent Image. A VAE-encoded picture is changed "
                        "instead, as far as denoise allows."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The number the noise is drawn from: the same noise as a KSampler with this seed.",
                ),
                preset_input(),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip=f"{NEGATIVE_TOOLTIP} Leave it unconnected for none.",
                ),
                alpha_input("-1 takes what suits the preset. Does nothing without a negative prompt.", optional=True),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "How much of a connected picture may change; 1 is all. Sampling starts at the preset's first "
                        "timestep at or under it: 0.5 means 500 of 1000."
                    ),
                ),
                steps_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The picture as a latent, ready for VAE Decode."),
                io.String.Output(display_name="info", tooltip="Which preset was taken, why, and what it means."),
            ],
            hidden=HIDDEN,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        return tables_now()

    @classmethod
    @printable_errors
    def execute(
        cls, model, positive, latent_image, seed, preset, negative=None, alpha=SUITING, denoise=1.0, steps=0
    ) -> io.NodeOutput:
        check_model(model)
        check_numbers(seed=seed, alpha=alpha, denoise=denoise, steps=steps)
        check_steps(steps)
        check_seed(seed)
        check_conditioning("positive", positive, text_width(model.get_model_object("diffusion_model")))
        latent_image = checked_latent(latent_image)
        choice = preset_for(cls, model, preset, latent_image, steps)
        sampled, sigmas = sigmas_of(with_preset(model, choice.preset), denoise)
        told = choice.said
        if negative is not None:
            acting, remark = without_empty(cls, negative)
            alpha = alpha_of(model, choice.preset) if alpha < 0 else alpha
            kept = kept_for_clones(model, negative)
            sampled = patch(sampled, negative, alpha, kept=kept, acting=acting, rule=AUTO)
            told += f" {remark}" if remark else ""
            told += f" Negative strength {alpha:g}." if acting else ""
        elif reads_unconditional(sampled):
            told += " No negative is connected: patches of the model that want one get the positive."
        info = show(cls, told, choice.details)
        callback = latent_preview.prepare_callback(sampled, len(sigmas) - 1)
        latent = sample(sampled, sigmas, positive, latent_image, seed, callback, negative)
        return io.NodeOutput(latent, info, ui=ui.PreviewText(info))
