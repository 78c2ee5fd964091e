"""The demo's text encoder: CLIP-L in shape, its weights drawn from a frozen random stream.

A random transformer still tells words apart, so nothing of it has to be trained or shipped: the stream of
numpy's ``RandomState`` never changes, and the weights are drawn anew wherever they are needed.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SEED = 20241202
TOKENS = 77

# Standard deviations. Words outweigh positions, and what the layers mix in stays smaller than the word itself.
TOKEN, POSITION, QUERY_KEY, MIXED_IN = 1.0, 0.25, 1.4, 0.25


def tokenizer() -> CLIPTokenizer:
    """The part of CLIP's own vocabulary that the world's words need, with CLIP's ids and merges."""
    folder = Path(__file__).with_name("tokenizer")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


def _scale(name: str, fan_in: int) -> float:
    """Standard deviation of the weight called ``name``."""
    if "token_embedding" in name:
        return TOKEN
    if "position_embedding" in name:
        return POSITION
    gain = QUERY_KEY if "q_proj" in name or "k_proj" in name else MIXED_IN if "out_proj" in name or "fc2" in name else 1
    return gain / fan_in**0.5


def text_encoder() -> CLIPTextModel:
    """CLIP-L (12 layers of 768), float32 with every weight rounded to half precision, as the checkpoint has it."""
    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        projection_dim=768,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    with torch.device("meta"):
        model = CLIPTextModel(config)
    random = np.random.RandomState(SEED)
    state = model.state_dict()
    # The order of the draws must outlive transformers' changes of order and prefix.
    for name in sorted(state, key=lambda name: name.removeprefix("text_model.")):
        shape = state[name].shape
        if not state[name].is_floating_point():
            state[name] = torch.arange(shape.numel()).reshape(shape)
        elif "norm" in name or name.endswith("bias"):
            state[name] = torch.full(shape, float("norm" in name and name.endswith("weight")))
        else:
            drawn = random.standard_normal(shape).astype(np.float32) * np.float32(_scale(name, shape[-1]))
            state[name] = torch.from_numpy(drawn).half().float()
    model.load_state_dict(state, assign=True)
    # position_ids is a buffer that is not saved, so it is still on the meta device.
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.arange(TOKENS).unsqueeze(0), persistent=False)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def encode(texts: list[str], encoder: CLIPTextModel | None = None) -> torch.Tensor:
    """Embeddings float32 [len(texts), 77, 768], after the final layer norm, as ComfyUI's SD 1.5 gives them."""
    encoder = encoder or text_encoder()
    words = tokenizer()(texts, padding="max_length", truncation=True, return_tensors="pt")
    return torch.cat([encoder(ids)[0] for ids in words.input_ids.split(32)])
