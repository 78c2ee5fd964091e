"""Models that NASA does not support yet, and such as have no text attention. Each is refused in one sentence."""

import pytest
import torch
from families import UNET, make_patcher

LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": 24, "n_layers": 1,
    "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "axes_dims": [8, 8, 8],
    "axes_lens": [300, 512, 512],
}  # fmt: skip
NO_ATTENTION = {
    **UNET, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 0], "context_dim": None,
    "transformer_depth_middle": -1, "transformer_depth_output": [0] * 4, "use_spatial_transformer": False,
}  # fmt: skip

REFUSED = {
    "Mochi": ("GenmoMochi", {"image_model": "mochi_preview", "depth": 1, "hidden_size_x": 3072, "hidden_size_y": 1536,
                             "mlp_ratio_x": 4.0, "num_heads": 24, "in_channels": 12, "use_t5": True,
                             "qk_norm": True, "qkv_bias": False}),  # asserts its width
    "Lumina 2": ("Lumina2", LUMINA),
    "Z-Image": ("ZImage", {**LUMINA, "z_image_modulation": True, "pad_tokens_multiple": 4}),
    "HiDream": ("HiDream", {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16,
                            "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                            "num_attention_heads": 2, "caption_channels": [24, 24], "text_emb_dim": 20,
                            "axes_dims_rope": [8, 4, 4], "max_resolution": [8, 8], "llama_layers": [0, 0]}),
    "Qwen-Image": ("QwenImage", {"image_model": "qwen_image", "num_layers": 1, "attention_head_dim": 16,
                                 "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": [8, 4, 4]}),
    "Stable Cascade": ("Stable_Cascade_C", {"stable_cascade_stage": "c", "c_cond": 32, "c_hidden": [32, 32],
                                            "nhead": [2, 2], "blocks": [[1, 1], [1, 1]], "c_clip_text": 24,
                                            "c_clip_text_pooled": 24, "c_clip_img": 24}),
    "ERNIE-Image": ("ErnieImage", {"hidden_size": 48, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 64,
                                   "in_channels": 16, "out_channels": 16, "text_in_dim": 24,
                                   "rope_axes_dim": (8, 8, 8)}),
    "CogVideoX": ("CogVideoX_T2V", {"image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 24,
                                    "text_embed_dim": 24, "num_layers": 1, "time_embed_dim": 16,
                                    "use_rotary_positional_embeddings": True}),
    "a UNet without cross-attention": ("SD15", NO_ATTENTION),
    "ACE-Step": ("ACEStep", {"audio_model": "ace", "num_layers": 1, "inner_dim": 48, "attention_head_dim": 24,
                             "num_attention_heads": 2, "speaker_embedding_dim": 8, "text_embedding_dim": 24,
                             "lyric_hidden_size": 24, "lyric_encoder_vocab_size": 8, "max_position": 64}),
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
