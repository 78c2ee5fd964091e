"""Models that NASA does not support yet, and such as have no text attention. Each is refused in one sentence."""

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from families import UNET, make_patcher

NO_ATTENTION = {
    **UNET, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 0], "context_dim": None,
    "transformer_depth_middle": -1, "transformer_depth_output": [0] * 4, "use_spatial_transformer": False,
}  # fmt: skip

REFUSED = {
    "a UNet without cross-attention": ("SD15", NO_ATTENTION),
}  # fmt: skip

CASCADE = {"c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]]}
PICTURES, NO_PICTURES = (
    "which is given pictures and no prompt: remove the NASA patch.",
    "which makes no pictures: remove",
)
#: What users call the family, its class in comfy.supported_models, arguments of its network, and what it is told.
NAMED = [
    ("Stable Cascade", "Stable_Cascade_C", {"stable_cascade_stage": "c", **CASCADE, "c_clip_text": 24,
                                            "c_clip_text_pooled": 24, "c_clip_img": 24},
     "the picture's own keys: use the negative of a KSampler at a CFG above 1, or another model."),
    ("Stable Cascade", "Stable_Cascade_B", {"stable_cascade_stage": "b", **CASCADE, "block_repeat": [[1, 1], [1, 1]],
                                            "level_config": ["CT", "CTA"]},
     "the picture's own keys: use the negative of a KSampler at a CFG above 1, or another model."),
    ("SeedVR2", "SeedVR2", {"image_model": "seedvr2", "norm_eps": 1e-5, "num_layers": 2, "mlp_type": "swiglu"},
     "whose prompt is always the same: remove the NASA patch."),
    ("MiniMax Music", "MiniMaxMusic3", {},
     "whose prompt has become sound before it is sampled: remove the NASA patch."),
    ("Hunyuan3D 2", "Hunyuan3Dv2", {}, PICTURES),
    ("Hunyuan3D 2", "Hunyuan3Dv2mini", {}, PICTURES),
    ("Hunyuan3D 2.1", "Hunyuan3Dv2_1", {}, PICTURES),
    ("Trellis 2", "Trellis2", {"image_model": "trellis2", "resolution": 32}, PICTURES),
    ("TripoSplat", "TripoSplat", {}, PICTURES),
    ("Depth Anything 3", "DepthAnything3", {}, NO_PICTURES),
    ("SAM 3", "SAM3", {}, NO_PICTURES),
]  # fmt: skip


@pytest.mark.parametrize("name, config, unet, told", NAMED, ids=[config for _, config, *_ in NAMED])
def test_a_family_without_a_text_to_steer_is_named_with_what_to_do_instead(pack, name, config, unet, told):
    """At full size, where no argument makes it narrow, but without memory."""
    config_class = getattr(comfy.supported_models, config, None)
    if config_class is None:
        pytest.skip(f"this ComfyUI has no {config}")
    device = "cpu" if "c_hidden" in unet else "meta"
    with torch.device(device):
        settings = config_class({**config_class.unet_config, **unet, "dtype": torch.float32})
        settings.set_inference_dtype(torch.float32, None)
        network = settings.get_model({}, "", device=device)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)
    with pytest.raises(ValueError) as raised:
        pack.payload.patch(model, [[torch.randn(1, 9, 24), {"pooled_output": torch.randn(1, 20)}]], 0.4)
    sentence = str(raised.value)
    assert sentence.startswith(f"NASA cannot steer {name} ({type(settings).__name__}), ") and told in sentence
    assert ". " not in sentence and "\n" not in sentence


def build_refused(name):
    """Its ModelPatcher, without weights."""
    config, unet = REFUSED[name]
    model = make_patcher(config, unet)
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_refused(pack, name):
    """One sentence that names the model; raised when the node runs."""
    model = build_refused(name)
    with pytest.raises(ValueError) as raised:
        pack.payload.patch(model, [[torch.randn(1, 9, 24), {"pooled_output": torch.randn(1, 20)}]], 0.4)
    sentence = str(raised.value)
    assert (
        f"({type(model.model.model_config).__name__})" in sentence and "not support" in sentence and "yet" in sentence
    )
    models = pack.nasa_patch.MODELS_IN_WORDS
    assert sentence.endswith(f": use {models}.")
    assert models in pack.nasa_patch.NASACrossAttentionPatch.define_schema().inputs[0].tooltip
    assert ". " not in sentence and "\n" not in sentence
