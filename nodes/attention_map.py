"""NASA Attention Map: where in a picture the negative prompt acts, or a word of it."""

import dataclasses

import torch
from comfy_api.latest import io

from .connected import check_model, check_numbers
from .guidance.conditioning import check_conditioning
from .guidance.layouts import text_width
from .guidance.payload import negatives_of
from .map.look import look
from .map.overlay import as_mask, overlay, together
from .map.word import find
from .quoting import printable_errors
from .sampling.latent import checked_latent
from .schema import advanced, schema
from .sweep.sheet import sheet
from .upstream import texts_before

MEAN, EACH = "all together", "each block"


class NASAAttentionMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="NASAAttentionMap",
            display_name="NASA Attention Map (negative prompt)",
            category="SNOOPI",
            description=(
                "Shows where in a picture the negative prompt acts, or one word of it: bright over the grey picture, "
                "and as a mask."
            ),
            search_aliases=["negative prompt", "NASA", "SNOOPI", "attention", "heatmap", "heat map", "DAAM", "mask",
                            "where", "explain"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The steered model: what the NASA Cross-Attention Patch gives to the sampler."
                ),
                io.Conditioning.Input("positive", tooltip="The prompt of the picture: a CLIP Text Encode."),
                io.Latent.Input("latent_image", tooltip="The finished picture, as the sampler gives it."),
                io.Image.Input("image", tooltip="The same picture, as the VAE Decode gives it: the map lies over it."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="What the CLIP Text Encode of the negative prompt has as clip; only a word needs it.",
                ),
                io.String.Input(
                    "word",
                    default="",
                    optional=True,
                    tooltip=(
                        "One word of the negative prompt, or several that follow on each other, to see where the model "
                        "finds it. Empty shows where the whole negative prompt changes the picture. Needs clip."
                    ),
                ),
                io.Combo.Input(
                    "show",
                    options=[MEAN, EACH],
                    default=MEAN,
                    optional=True,
                    tooltip=(
                        "all together is one map; each block is a sheet with a map for every part of the model, of "
                        "which some look at shapes and others at colours."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "noise",
                        default=0.7,
                        min=0.01,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip=(
                            "How noisy the picture is made for the look: 1 is the start of the sampling, where the "
                            "picture is laid out; low numbers are its end, where details come."
                        ),
                    )
                ),
            ],
            outputs=[
                io.Image.Output(display_name="overlay", tooltip="The picture in grey, and bright where it acts."),
                io.Mask.Output(display_name="mask", tooltip="The map alone: 1 where it acts most, 0 where least."),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    @printable_errors
    def execute(cls, model, positive, latent_image, image, clip=None, word="", show=MEAN, noise=0.7) -> io.NodeOutput:
        check_model(model)
        check_numbers(noise=noise)
        check_conditioning("positive", positive, text_width(model.get_model_object("diffusion_model")))
        negatives, tokens = negatives_of(model), None
        if not negatives:
            raise ValueError(
                "The model is not steered away from anything, so there is nothing to see: connect the model of a NASA "
                "Cross-Attention Patch to it, whose alpha is above 0 and whose negative prompt is not empty."
            )
        if word.strip():
            negatives, tokens = of_word(cls, word.strip(), negatives, clip)
        samples = checked_latent(latent_image)["samples"]
        check_image(image, samples)
        maps = look(model, negatives, positive, samples, noise, tokens)
        if show == EACH:
            masks = {name: as_mask(map, image) for name, map in maps.items()}
            shown = sheet([overlay(image, mask) for mask in masks.values()], [*masks])
            return io.NodeOutput(shown, torch.cat([*masks.values()]))
        mask = as_mask(together(maps), image)
        return io.NodeOutput(overlay(image, mask), mask)


def of_word(node, word, negatives, clip):
    """The one negative that holds a word, with the entry that does alone, and which of its tokens are the word's."""
    if clip is None:
        raise ValueError(
            "clip is not connected, which a word needs: connect what the CLIP Text Encode of the negative prompt has "
            "as clip, or leave word empty."
        )
    entries = [(name, entry) for name, negative in negatives.items() for entry in negative.conditioning]
    number, tokens = find(word, texts_before(node, "model"), [entry for _, entry in entries], clip)
    name, entry = entries[number]
    return {name: dataclasses.replace(negatives[name], conditioning=[entry])}, tokens


def check_image(image: object, samples: torch.Tensor) -> None:
    """Raise ValueError, one sentence, unless it may be the picture that these latents are."""
    if not torch.is_tensor(image) or image.ndim != 4 or 0 in image.shape or image.shape[-1] < 3:
        raise ValueError("The image is no picture: connect the VAE Decode of the same latent to it.")
    if samples.ndim == 4 and len(image) != len(samples):
        raise ValueError(
            f"The image holds {len(image)} pictures and the latent_image {len(samples)}: connect the VAE Decode of the "
            f"same latent to it."
        )
