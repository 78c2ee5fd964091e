"""SNOOPI Checkpoint Loader: a model with what its file says of itself, so that `auto` is certain."""

from comfy_api.latest import io, ui

from .preset_choice import HIDDEN, preset_input, tables_now
from .quoting import printable_errors, show
from .sampling.load import load, model_names, stamps_of
from .schema import schema


class SNOOPICheckpointLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SNOOPICheckpointLoader",
            display_name="SNOOPI Checkpoint Loader",
            category="SNOOPI",
            description=(
                "Loads a checkpoint or a diffusion model and finds out which one-step model it is, so that auto in the "
                "other SNOOPI nodes is certain. Sets right what ComfyUI takes for another model."
            ),
            search_aliases=["Load Checkpoint", "Load Diffusion Model", "UNETLoader", "CheckpointLoaderSimple"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names(),
                    tooltip="A file in models/checkpoints or models/diffusion_models; .safetensors is safest.",
                ),
                preset_input(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The model."),
                io.Clip.Output(display_name="CLIP", tooltip="Its text encoder; a diffusion model has none."),
                io.Vae.Output(display_name="VAE", tooltip="Its autoencoder; a diffusion model has none."),
                io.String.Output(
                    display_name="info", tooltip="Which model it is, how that is known, what was repaired."
                ),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, **inputs) -> str:
        return f"{stamps_of(model_name)} {tables_now()}"

    @classmethod
    @printable_errors
    def execute(cls, model_name, preset) -> io.NodeOutput:
        model, clip, vae, info = load(model_name, preset)
        info = show(cls, info)
        return io.NodeOutput(model, clip, vae, info, ui=ui.PreviewText(info))
