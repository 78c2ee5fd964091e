"""NASA Cross-Attention Patch: a negative prompt for any sampler, at CFG 1."""

from comfy_api.latest import io, ui

from .connected import check_model, check_numbers, no_numbers
from .empty_prompt import without_empty
from .guidance.blocks import ALL
from .guidance.layouts import MODELS_IN_WORDS
from .guidance.payload import AUTO, patch, refusal_of
from .guidance.rules import LARGEST_ALPHA, RULES
from .padding import without_padding
from .preset_choice import HIDDEN
from .quoting import printable_errors, show
from .sampling.detect import alpha_of
from .schema import advanced, schema

ALPHA_TOOLTIP = (
    "How strongly the picture is steered away from the negative prompt; 0 is off. Good starting points are 0.1 for "
    "SD 1.5, 0.2 for SD 2.1, 0.5 for SDXL and PixArt, and 1 where prompt and picture share one attention, as in Flux "
    "and SD 3. Too much, and quality falls: with the rule nasa more than 1, with difference more than 3, with vsf more "
    "than 6 is rarely of use."
)
NEGATIVE_TOOLTIP = (
    "What should not be in the picture: a CLIP Text Encode. Weights such as (red:1.5) count; an empty box switches "
    "NASA off."
)
#: The alpha of a new node: a number, since ComfyUI 0.3.75 has no input that takes a word or a number.
SUITING = -1.0
#: What people type who look for what these nodes do.
SEARCHED = (
    "negative prompt", "guidance", "distilled", "schnell", "cfg 1", "no cfg", "few step", "4 step", "sdxl turbo",
    "z-image", "klein", "qwen", "remove", "exclude", "avoid", "unwanted", "without", "negpip", "steer", "pixart",
    "strength",
)  # fmt: skip


def alpha_input(of_the_node: str, **fields) -> io.Input:
    """The strength of the negative prompt, of this node and the one-step sampler; `of_the_node` ends the tooltip."""
    bounds = {"default": SUITING, "min": SUITING, "max": LARGEST_ALPHA, "step": 0.01}
    return io.Float.Input("alpha", **bounds, tooltip=f"{ALPHA_TOOLTIP} {of_the_node}", **fields)


class NASACrossAttentionPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NASACrossAttentionPatch",
            display_name="NASA Cross-Attention Patch",
            category="SNOOPI",
            description=(
                "Keeps what the negative prompt names out of the picture, also with one-step and few-step models that "
                "run without CFG. Connect the result to any sampler."
            ),
            search_aliases=["NASA", "SNOOPI", "NAG", "negative attention", "turbo negative", *SEARCHED],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=f"{MODELS_IN_WORDS}, and what is distilled from them. It is not changed itself.",
                ),
                io.Conditioning.Input("negative", tooltip=NEGATIVE_TOOLTIP),
                alpha_input("-1 takes what suits the model."),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in the sampling the steering begins: 0 is the start, 1 the end.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in the sampling the steering ends: 0 is the start, 1 the end.",
                ),
                advanced(
                    io.String.Input(
                        "blocks",
                        default=ALL,
                        optional=True,
                        tooltip=(
                            "Which parts of the model are steered: all, or a list such as in4-8, mid, out3-5 for SD "
                            "and SDXL, and 0-13 for other models. The help page says what each family has."
                        ),
                    )
                ),
                advanced(
                    io.Float.Input(
                        "norm_limit",
                        default=0.0,
                        min=0.0,
                        max=10.0,
                        step=0.1,
                        optional=True,
                        tooltip=(
                            "Lets a large alpha degrade gently: features may grow to so many times their size without "
                            "the negative prompt. 0 is off; try 2.5, and nothing under 1."
                        ),
                    )
                ),
                advanced(
                    io.String.Input(
                        "name",
                        default="",
                        optional=True,
                        tooltip=(
                            "A second NASA patch on a model replaces the first of the same name. Give them different "
                            "names, and both act, each with its own alpha."
                        ),
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "rule",
                        options=[AUTO, *RULES],
                        default=AUTO,
                        optional=True,
                        tooltip=(
                            "How the negative is taken away. auto takes what suits the model: nasa, adaptive, where "
                            "the prompt has an attention of its own; difference where text and picture share one. "
                            "nasa, with adaptive off, is exactly the paper's."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "adaptive",
                        default=False,
                        optional=True,
                        tooltip=(
                            "Steers less where the picture looks at the prompt alone, so that a negative that has "
                            "nothing to do with the picture changes little. Where auto takes nasa, it is on by itself."
                        ),
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "padding",
                        default=True,
                        label_on="kept",
                        label_off="left out",
                        optional=True,
                        tooltip=(
                            "Text encoders fill a short prompt up with empty tokens. Kept, the negative is read as any "
                            "prompt; left out, by its words alone, which is less work in Flux."
                        ),
                    )
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "What the CLIP Text Encode of the negative prompt has as clip; only padding that is left out "
                        "needs it, and not with every text encoder."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, steered away from the negative prompt.")
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def validate_inputs(
        cls, alpha=None, start_percent=None, end_percent=None, norm_limit=None, rule=None
    ) -> bool | str:
        """Before the run, what needs no model; None is what comes over a link."""
        numbers = {
            "alpha": alpha, "start_percent": start_percent, "end_percent": end_percent, "norm_limit": norm_limit,
        }  # fmt: skip
        given = {name: value for name, value in (numbers | {"rule": rule}).items() if value is not None}
        if alpha == SUITING:
            del given["alpha"]
        return no_numbers(**numbers) or refusal_of(**given) or True

    @classmethod
    @printable_errors
    def execute(
        cls,
        model,
        negative,
        alpha,
        start_percent,
        end_percent,
        blocks=ALL,
        norm_limit=0.0,
        name="",
        rule=AUTO,
        adaptive=False,
        padding=True,
        clip=None,
    ) -> io.NodeOutput:
        check_model(model)
        check_numbers(alpha=alpha, start_percent=start_percent, end_percent=end_percent, norm_limit=norm_limit)
        acting, remark = without_empty(cls, negative)
        if alpha == SUITING:
            alpha = alpha_of(model)
            remark = remark or f"Negative strength {alpha:g}, which suits the model."
        if not padding and acting:
            acting = without_padding(cls, model, acting, clip)
        patched = patch(
            model, negative, alpha, start_percent, end_percent, blocks, norm_limit, name,
            acting=acting, rule=rule, adaptive=adaptive,
        )  # fmt: skip
        if not remark:
            return io.NodeOutput(patched)
        show(cls, remark)
        return io.NodeOutput(patched, ui=ui.PreviewText(remark))
