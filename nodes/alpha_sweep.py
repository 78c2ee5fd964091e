"""NASA Alpha Sweep: one picture at several strengths of its negative prompt, to see which alpha is right."""

from comfy_api.latest import io, ui

from .connected import check_model, check_numbers, check_seed, no_numbers
from .empty_prompt import without_empty
from .guidance.conditioning import check_conditioning
from .guidance.layouts import text_width
from .guidance.rules import LARGEST_ALPHA
from .nasa_patch import NEGATIVE_TOOLTIP
from .preset_choice import HIDDEN, preset_for, preset_input, tables_now
from .quoting import printable_errors, show
from .sampling.latent import checked_latent
from .sampling.one_step import steps, with_preset
from .schema import schema
from .sweep.alphas import MOST, alphas, refusal
from .sweep.sheet import sheet
from .sweep.sweep import sweep


class NASAAlphaSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NASAAlphaSweep",
            display_name="NASA Alpha Sweep (negative prompt)",
            category="SNOOPI",
            description=(
                "Shows one picture without the negative prompt and with it at several strengths, side by side and "
                "labelled, so that you see which alpha is right for your model."
            ),
            search_aliases=["negative prompt", "NASA", "SNOOPI", "alpha", "strength", "compare", "grid", "XY plot",
                            "sweep", "one step", "few step"],
            inputs=[
                io.Model.Input("model", tooltip="A one-step or few-step model, with its LoRAs and other patches."),
                io.Conditioning.Input("positive", tooltip="What should be in the picture: a CLIP Text Encode."),
                io.Conditioning.Input("negative", tooltip=NEGATIVE_TOOLTIP),
                io.Latent.Input(
                    "latent_image",
                    tooltip=(
                        "The size of the picture: an Empty Latent Image. With a batch size of more than one, the sheet "
                        "has a row for each picture."
                    ),
                ),
                io.Vae.Input("vae", tooltip="The VAE of the model: the sheet is made of finished pictures."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The number the noise is drawn from: the pictures of the one-step sampler with this seed.",
                ),
                preset_input(),
                io.Float.Input(
                    "alpha_from",
                    default=0.1,
                    min=0.0,
                    max=LARGEST_ALPHA,
                    step=0.05,
                    tooltip="The strength of the first steered picture. The plain picture always comes before it.",
                ),
                io.Float.Input(
                    "alpha_to",
                    default=1.0,
                    min=0.0,
                    max=LARGEST_ALPHA,
                    step=0.05,
                    tooltip="The strength of the last picture.",
                ),
                io.Int.Input(
                    "count",
                    default=7,
                    min=1,
                    max=MOST,
                    tooltip="How many strengths are shown, at even distances. Each takes as long as one picture.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The sheet: the plain picture first, then each alpha."),
                io.String.Output(display_name="info", tooltip="Which preset was taken, why, and what it means."),
            ],
            hidden=HIDDEN,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, alpha_from=None, alpha_to=None, count=None) -> bool | str:
        numbers = no_numbers(alpha_from=alpha_from, alpha_to=alpha_to, count=count)
        return numbers or refusal(alpha_from, alpha_to, count) or True

    @classmethod
    def fingerprint_inputs(cls, **inputs) -> str:
        return tables_now()

    @classmethod
    @printable_errors
    def execute(
        cls, model, positive, negative, latent_image, vae, seed, preset, alpha_from, alpha_to, count
    ) -> io.NodeOutput:
        check_model(model)
        check_numbers(seed=seed, alpha_from=alpha_from, alpha_to=alpha_to, count=count)
        check_seed(seed)
        check_conditioning("positive", positive, text_width(model.get_model_object("diffusion_model")))
        latent_image = checked_latent(latent_image)
        if vae is None:
            raise ValueError("The vae is empty, as diffusion models have none: connect a Load VAE to it.")
        strengths = alphas(alpha_from, alpha_to, count)
        choice = preset_for(cls, model, preset, latent_image)
        acting, remark = without_empty(cls, negative)
        info = show(cls, f"{choice.said} {remark}".rstrip(), choice.details)
        sampled, sigmas = steps(with_preset(model, choice.preset))
        pictures = sweep(model, sampled, sigmas, positive, negative, acting, latent_image, vae, seed, strengths)
        labels = ["no negative", *(f"alpha {alpha:.3g}" for alpha in strengths)]
        return io.NodeOutput(sheet(pictures, labels), info, ui=ui.PreviewText(info))
