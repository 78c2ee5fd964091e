"""Bad input, the preset table, and what the nodes show."""

import math

import pytest
import torch


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"alpha": math.nan}, "alpha is nan: give a number from 0 to 10."),
        ({"alpha": math.inf}, "alpha is inf: give a number from 0 to 10."),
        ({"alpha": 10.1}, "alpha is 10.1: give a number from 0 to 10."),
        ({"alpha": -0.1}, "alpha is -0.1: give a number from 0 to 10."),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent is 0.8 and end_percent 0.2: give numbers from 0"),
        ({"start_percent": math.nan}, "start_percent is nan and end_percent 1.0: give numbers"),
        ({"norm_limit": 0.5}, "norm_limit is 0.5: give a number from 1 on, such as 2.5, or 0 to switch it off."),
        ({"norm_limit": math.nan}, "norm_limit is nan: give a number from 1 on"),
        ({"norm_limit": math.inf}, "norm_limit is inf: give a number from 1 on"),
        (
            {"blocks": "mid, in2"},
            "blocks names in2, which is not a block with cross-attention of this model: "
            "choose from in1, in3, mid, out0-3, or write all.",
        ),
        ({"negative": []}, "The negative conditioning is empty: connect a CLIP Text Encode"),
        ({"negative": [[None, {}]]}, "The negative conditioning holds no text embedding"),
        ({"negative": [[torch.zeros(1, 0, 24), {}]]}, "The negative conditioning holds no text embedding"),
        (
            {"negative": [[torch.zeros(1, 77, 2048), {}]]},
            "The negative conditioning is 2048 wide, but this model reads text 24 wide: encode it",
        ),
        ({"negative": [[torch.full((1, 77, 24), math.nan), {}]]}, "The negative conditioning holds NaN or infinite"),
        ({"negative": [[torch.full((1, 77, 24), math.inf), {}]]}, "The negative conditioning holds NaN or infinite"),
    ],
)
def test_bad_input_of_the_patch(pack, model, text, change, sentence):
    inputs = {"model": model, "negative": text(2), "alpha": 0.5, "start_percent": 0.0, "end_percent": 1.0} | change
    with pytest.raises(ValueError) as error:
        pack.nasa_patch.NASACrossAttentionPatch.execute(**inputs)
    assert str(error.value).startswith(sentence) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"preset": "sdxl"}, "There is no preset called sdxl: choose one of sd, snoopi-shapes, "),
        ({"positive": []}, "The positive conditioning is empty"),
        ({"positive": [[torch.zeros(1, 77, 768), {}]]}, "The positive conditioning is 768 wide"),
        ({"negative": []}, "The negative conditioning is empty"),
        ({"negative": [[torch.zeros(1, 77, 24), {}]], "alpha": math.nan}, "alpha is nan"),
    ],
)
def test_bad_input_of_the_sampler(pack, model, text, change, sentence):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    inputs = {"model": model, "positive": text(1), "latent_image": latent, "seed": 1, "preset": "sd"} | change
    with pytest.raises(ValueError) as error:
        pack.one_step_sampler.SNOOPIOneStepSampler.execute(**inputs)
    assert str(error.value).startswith(sentence)


def test_comfyui_loads_the_pack(pack):
    import asyncio
    from pathlib import Path

    extension = asyncio.run(pack.root.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in nodes}
    assert {key: schema.display_name for key, schema in schemas.items()} == {
        "NASACrossAttentionPatch": "NASA Cross-Attention Patch",
        "SNOOPIOneStepSampler": "SNOOPI One-Step Sampler",
        "SNOOPIModelSampling": "SNOOPI Model Sampling",
        "SNOOPIOneStepScheduler": "SNOOPI One-Step Scheduler",
        "SNOOPICheckpointLoader": "SNOOPI Checkpoint Loader",
        "NASAAlphaSweep": "NASA Alpha Sweep (negative prompt)",
        "NASAAttentionMap": "NASA Attention Map (negative prompt)",
    }
    assert not hasattr(pack.root, "NODE_CLASS_MAPPINGS")
    web = Path(pack.root.__file__).parent / pack.root.WEB_DIRECTORY
    for node_id, schema in schemas.items():
        assert schema.category == "SNOOPI" and schema.description
        assert all(part.tooltip for part in [*schema.inputs, *schema.outputs]), node_id
        page = (web / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
        assert all(f"**{part.id}**" in page for part in schema.inputs), node_id


def test_unknown_schema_fields_are_dropped(pack):
    schema = pack.schema.schema(node_id="X", field_of_a_later_version=1)
    assert schema.node_id == "X"


def test_nodes_are_found_by_what_people_type(pack):
    """Where ComfyUI searches more than display names."""
    words = "guidance distilled schnell remove exclude avoid unwanted without negpip steer pixart strength klein qwen"
    words = {*words.split(), "negative prompt", "sdxl turbo", "cfg 1", "no cfg", "few step", "4 step", "z-image"}
    for node in pack.nodes.NODES:
        schema = node.define_schema()
        if schema.node_id in ("NASACrossAttentionPatch", "SNOOPIOneStepSampler"):
            assert words <= {*getattr(schema, "search_aliases", words)}
