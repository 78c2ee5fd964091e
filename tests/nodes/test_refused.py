"""Models that NASA does not support yet, and such as have no text attention. Each is refused in one sentence."""

import pytest
import torch
from families import UNET, make_patcher

FLUX = {
    "image_model": "flux", "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2.0, "depth": 1, "depth_single_blocks": 1,
    "qkv_bias": True, "in_channels": 16, "out_channels": 16, "vec_in_dim": 20, "context_in_dim": 24,
    "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
HUNYUAN_VIDEO = {
    **FLUX, "image_model": "hunyuan_video", "patch_size": [1, 2, 2], "theta": 256, "byt5": False, "meanflow": False,
    "meanflow_sum": False, "use_cond_type_embedding": False, "vision_in_dim": None,
}  # fmt: skip
NO_ATTENTION = {
    **UNET, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 0], "context_dim": None,
    "transformer_depth_middle": -1, "transformer_depth_output": [0] * 4, "use_spatial_transformer": False,
}  # fmt: skip

REFUSED = {
    "AuraFlow": ("AuraFlow", {"dim": 32, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "global_conddim": 32,
                              "cond_seq_dim": 24, "max_seq": 64}),
    "Chroma": ("Chroma", {**FLUX, "image_model": "chroma", "in_dim": 8, "out_dim": 64, "hidden_dim": 16,
                          "n_layers": 1}),
    "HunyuanVideo": ("HunyuanVideo", HUNYUAN_VIDEO),
    "HunyuanImage 2.1": ("HunyuanImage21", {**HUNYUAN_VIDEO, "vec_in_dim": None}),
    "a UNet without cross-attention": ("SD15", NO_ATTENTION),
}  # fmt: skip


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
