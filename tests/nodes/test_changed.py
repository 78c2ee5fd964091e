"""Families that are known, but that a new core has changed: one sentence before any sampling."""

from types import MethodType

import comfyui_version
import pytest
from families import ALL, build, conditioning, sample

#: What to take away from a model, as the name of the family, of a module in it ("" for the model) and of an attribute.
CHANGED = [
    ("Flux", "", "double_blocks"),
    ("Flux", "", "single_blocks"),
    ("Flux", "", "txt_in"),
    ("Flux", "", "pe_embedder"),
    ("Flux", "", "patch_size"),
    ("Flux 2", "", "vector_in"),
    ("Qwen-Image", "", "transformer_blocks"),
    ("Qwen-Image", "", "txt_norm"),
    ("Mage-Flow", "", "pe_embedder"),
    ("Lens", "", "txt_norm"),
    ("ERNIE-Image", "", "x_embedder"),
    ("ERNIE-Image", "layers.0", "self_attention"),
    ("JoyImage", "", "condition_embedder"),
    ("SD 3", "", "joint_blocks"),
    ("SD 3.5 medium", "", "context_embedder"),
    ("SD 3.5 medium", "", "patch_size"),
    ("Lumina 2", "", "layers"),
    ("Lumina 2", "", "cap_embedder"),
    ("Z-Image", "", "context_refiner"),
    ("Z-Image", "", "rope_embedder"),
    ("Krea 2", "", "txtfusion"),
    ("Chroma", "", "txt_in"),
    ("HunyuanVideo 1.5", "", "vision_in"),
    ("HunyuanImage 2.1", "txt_in", "input_embedder"),
    ("AuraFlow", "", "single_layers"),
    ("AuraFlow", "", "cond_seq_linear"),
    ("HiDream-O1", "", "visual"),
    ("Ideogram 4", "", "llm_cond_proj"),
    ("Boogu", "", "double_stream_layers"),
    ("Wan 2.1 T2V", "", "text_embedding"),
    ("Wan 2.1 T2V", "blocks.0", "cross_attn"),
    ("Wan 2.1 T2V", "blocks.0.cross_attn", "norm_q"),
    ("PixArt-alpha", "", "y_embedder"),
    ("HunyuanDiT", "", "mlp_t5"),
    ("LTX-Video", "", "transformer_blocks"),
]


@pytest.mark.parametrize("name, inside, attribute", CHANGED)
def test_a_changed_family_is_refused_before_sampling(pack, name, inside, attribute):
    """The sentence names the family, what it lacks, and the version of ComfyUI."""
    model = build(name)
    network = model.model.diffusion_model
    module = network.get_submodule(inside)
    home = module.__dict__ if attribute in module.__dict__ else module._modules
    del home[attribute]
    with pytest.raises(ValueError) as raised:
        pack.payload.patch(model, conditioning(name, 2), 0.5)
    sentence = str(raised.value)
    family = type(network).__name__
    assert sentence.startswith(f"ComfyUI {comfyui_version.__version__} has changed {family}, the family of this model")
    assert f"'{attribute}'" in sentence and sentence.endswith("or remove the NASA patch.") and "\n" not in sentence


def test_an_attention_that_cannot_be_found_is_refused(pack):
    """ERNIE-Image's is found by the name that its forward calls."""
    model = build("ERNIE-Image")
    attention = model.model.diffusion_model.layers[1].self_attention
    attention.forward = MethodType(lambda self, x, attention_mask=None, image_rotary_emb=None: x, attention)
    with pytest.raises(ValueError, match=r"has changed ErnieImageModel, .*has no 'optimized_attention'"):
        pack.payload.patch(model, conditioning("ERNIE-Image", 2), 0.5)


def test_what_only_a_call_reads_is_missed_before_its_first_block(pack):
    """PixArt's K and V are computed when sampling begins: the same sentence, and nothing stays on the model."""
    model, steps = build("PixArt-alpha"), []
    network = model.model.diffusion_model
    patched = pack.payload.patch(model, conditioning("PixArt-alpha", 2), 0.5)
    del network.blocks[1].cross_attn._modules["kv_linear"]
    network.blocks[0].register_forward_pre_hook(lambda *_: steps.append(1))
    with pytest.raises(ValueError, match=f"^ComfyUI {comfyui_version.__version__} has changed PixArtMS, .*'kv_linear'"):
        sample("PixArt-alpha", patched, conditioning("PixArt-alpha", 1), steps=2)
    assert not steps
    assert not [key for module in network.modules() for key in module.__dict__ if key.startswith("nasa")]


@pytest.mark.parametrize("name", ALL)
def test_no_family_of_today_counts_as_changed(pack, name):
    pack.payload.patch(build(name), conditioning(name, 2), 0.5)


@pytest.mark.parametrize("name", ["Flux", "SD 3", "SD 3.5 large", "SD 3.5 medium", "HunyuanVideo"])
def test_a_negative_of_another_encoder_or_without_pooled_vector_is_refused(pack, name):
    model, negative = build(name), conditioning(name, 2)
    (embedding, options), width = negative[0], negative[0][0].shape[-1]
    with pytest.raises(ValueError, match=f"negative conditioning is {2 * width} wide, .* reads text {width} wide: enc"):
        pack.payload.patch(model, [[embedding.repeat(1, 1, 2), options]], 0.5)
    without = {key: value for key, value in options.items() if key != "pooled_output"}
    with pytest.raises(ValueError, match="The negative conditioning lacks pooled_output, which this model reads: enc"):
        pack.payload.patch(model, [[embedding, without]], 0.5)
    sample(name, pack.payload.patch(model, negative, 0.5), conditioning(name, 1), steps=1)


@pytest.mark.parametrize(
    "name, missing",
    [
        ("Mochi", "attention_mask"),
        ("HiDream-I1", "pooled_output"),
        ("HiDream-I1", "conditioning_llama3"),
        ("HiDream-O1", "text_input_ids"),
    ],
)
def test_a_negative_without_what_else_its_model_reads_is_refused(pack, name, missing):
    ((embedding, options),) = conditioning(name, 2)
    without = {key: value for key, value in options.items() if key != missing}
    with pytest.raises(ValueError, match=f"The negative conditioning lacks {missing}, which this model reads: encode"):
        pack.payload.patch(build(name), [[embedding, without]], 0.5)


@pytest.mark.parametrize("name", ["HunyuanVideo 1.5", "SDXL"])
def test_what_only_comfyui_asks_of_a_negative_is_one_sentence_too(pack, name):
    """Its own code reads these, whose encoders may hand over None."""
    ((embedding, options),) = conditioning(name, 2)
    without = {key: value for key, value in options.items() if key != "pooled_output"}
    patched = pack.payload.patch(build(name), [[embedding, without]], 0.5)
    with pytest.raises(ValueError, match="^The negative conditioning lacks pooled_output, which this model reads: enc"):
        sample(name, patched, conditioning(name, 1), steps=1)


def test_the_sampler_alone_needs_no_layout(pack):
    """Without NASA, a changed family is no reason to stop."""
    network = build("Flux").model.diffusion_model
    assert pack.alpha_sweep.text_width(network) == network.txt_in.in_features
    del network._modules["txt_in"]
    assert pack.alpha_sweep.text_width(network) is None
