"""Families that are known, but that a new core has changed: one sentence before any sampling."""

import ast
import importlib
from functools import cache
from pathlib import Path
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


#: What only some models of a family have.
OF_SOME = {
    "cosmos": {"preprocess_text_embeds"},
    "lumina": {"cap_pad_token"},
    "flux": {"txt_norm"},
    "ltx_video": {"audio_inner_dim", "inner_dim", "audio_prompt_adaln_single", "prompt_adaln_single",
                  "_prepare_context", "timestep_scale_multiplier"},
}  # fmt: skip
LAYOUTS = [path.stem for path in sorted((Path(__file__).parents[2] / "nodes/guidance/layouts").glob("*.py"))]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("__init__", "grid", "naming", "padding")])
def test_reads_is_all_that_a_layout_reads_of_its_model(pack, name):
    """Beside what `blocks` and `width` do, which the patch asks at once."""
    path = Path(pack.layouts.__file__).with_name(f"{name}.py")
    asked, read = set(), set()
    for function in ast.parse(path.read_text()).body:
        if isinstance(function, ast.FunctionDef):
            attributes = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
            found = {node.attr for node in attributes if ast.unparse(node.value) in ("model", "call.model", "unet")}
            (asked if function.name in ("blocks", "width", "needs") else read).update(found)
    try:
        layout = importlib.import_module(f"{pack.layouts.__name__}.{name}")
    except ImportError:
        pytest.skip(f"this ComfyUI has no {name}")
    assert read - asked - OF_SOME.get(name, set()) <= set(getattr(layout, "READS", ()))


@cache
def built(name):
    """For tests that leave the model as it was."""
    return build(name)


@pytest.mark.parametrize("name", ALL)
def test_every_family_counts_as_changed_without_what_is_read_of_it_and_only_then(pack, name, monkeypatch):
    model, negative = built(name), conditioning(name, 2)
    pack.payload.patch(model, negative, 0.5)
    network = model.model.diffusion_model
    for attribute in getattr(pack.layouts.find_layout(network), "READS", ()):
        homes = network.__dict__, network._modules, network._parameters, network._buffers
        home = next((home for home in homes if attribute in home), None)
        with monkeypatch.context() as changed:
            if home is None:
                owner = next(owner for owner in type(network).__mro__ if attribute in owner.__dict__)
                changed.delattr(owner, attribute)
            else:
                changed.delitem(home, attribute)
            with pytest.raises(ValueError, match=f"^ComfyUI .* has changed {type(network).__name__}, .*'{attribute}'"):
                pack.payload.patch(model, negative, 0.5)


@pytest.mark.parametrize("name", ALL)
def test_every_family_refuses_negatives_of_another_encoder_before_the_first_step(pack, name):
    """Of another width; and without a pooled vector, a mask or whatever else its own gives, where it is needed."""
    model, ((embedding, options),), steps = built(name), conditioning(name, 2), []
    positive, wide = conditioning(name, 1, positive=True), [[embedding.repeat(1, 1, 5), options]]
    with pytest.raises(ValueError, match="^The negative conditioning is .* wide, but this model reads text .* wide: e"):
        pack.payload.patch(model, wide, 0.5)
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda *_: steps.append(1))
    for missing in {*options, "pooled_output", "attention_mask"}:
        negative = [[embedding, {key: value for key, value in options.items() if key != missing}]]
        steps.clear()
        try:
            sample(name, pack.payload.patch(model, negative, 0.5), positive, steps=1, batch=1)
        except ValueError as error:
            assert str(error).startswith("The negative conditioning ") and "\n" not in str(error)
            assert "encode it with the CLIP that belongs to the model" in str(error) and not steps
        else:
            assert steps
    handle.remove()


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
