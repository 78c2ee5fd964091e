"""The portraits' multi-step teacher: a joint-attention network in the layout of Stable Diffusion 3, 20M parameters.

It learns from the exact denoiser of the world, as the shapes' teacher does, in flow form: x_t = (1 - t) x0 + t eps, the
network predicts v = eps - x0.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional

from ..method.draws import generator
from ..shapes import training_loop
from ..shapes.text import TOKENS, text_encoder, tokenizer
from ..shapes.training_loop import LoopSettings
from .latent_code import CHANNELS, GRID, allowed_values, denoise, latents, read
from .world import ATTRIBUTES, allowed, draw_caption, draw_items, fits

DEPTH, HEAD = 5, 64  # ComfyUI takes the width of an SD3 file for 64 times its depth
TEXT_WIDTH, SD3_TEXT_WIDTH, POOLED_WIDTH = 768, 4096, 2048  # CLIP-L fills the first 768 columns of SD3's text
LARGEST = 32  # patches of a side of the largest picture: 512 pixels
START = 0.72  # where a one-step student starts: a little before the pictures are decided
WORDS = 20  # tokens of the longest caption, its two marks among them


@dataclass(frozen=True)
class TeacherSettings(LoopSettings):
    """How the teacher is trained; saved in the record beside the weights."""

    steps: int = 1600
    cool_down: float = 0.4
    captions: int = 6000  # drawn before the training, repeats included
    middle: tuple[float, float] = (0.62, 0.87)  # the times where text and noise decide the picture ...
    middle_share: float = 0.6  # ... and their share of a batch
    noise_share: float = 0.3  # of a batch that starts from noise alone, as a one-step student does
    tokens: int = 24  # of the 77; the last ones, all padding, stand for those that are left out


SETTINGS = TeacherSettings()


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3's schedule."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def untrained(text_width: int = SD3_TEXT_WIDTH) -> SD3Transformer2DModel:
    """The network; its text comes through attention alone, as the pooled vector's weights are zero and stay so."""
    network = SD3Transformer2DModel(
        sample_size=GRID,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=DEPTH,
        num_attention_heads=DEPTH,
        attention_head_dim=HEAD,
        caption_projection_dim=DEPTH * HEAD,
        joint_attention_dim=text_width,
        pooled_projection_dim=POOLED_WIDTH,
        pos_embed_max_size=LARGEST,
        qk_norm="rms_norm",
    )
    pooled = network.time_text_embed.text_embedder
    for weight in pooled.parameters():
        torch.nn.init.zeros_(weight).requires_grad_(False)
    # Every block begins as if it were unmodulated: shifts and scales 0, gates 1.
    for block in network.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
            parts = norm.linear.bias.data.chunk(len(norm.linear.bias) // (DEPTH * HEAD))
            if len(parts) == 6:  # the last block's text has no gates
                parts[2].fill_(1.0)
                parts[5].fill_(1.0)
    # v holds the noise of x_t: what a patch brings in goes straight out at the start.
    inward = torch.nn.init.orthogonal_(network.pos_embed.proj.weight.data.view(DEPTH * HEAD, -1))
    network.proj_out.weight.data.copy_(inward.unflatten(1, (CHANNELS, 2, 2)).permute(2, 3, 1, 0).flatten(0, 2))
    return network


def widened(network: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The same network with SD3's text width: the columns past CLIP-L's are zero."""
    wide, state = untrained(), network.state_dict()
    state["context_embedder.weight"] = functional.pad(
        state["context_embedder.weight"], (0, SD3_TEXT_WIDTH - TEXT_WIDTH)
    )
    wide.load_state_dict(state)
    return wide


@torch.no_grad()
def encode(captions: list[str], tokens: int = TOKENS) -> Tensor:
    """Text as ComfyUI's SD3 gives CLIP-L's, less the zeros past column 768, float32 [N, tokens, 768]: the last hidden
    state but one, without the final norm."""
    encoder, ids = text_encoder(), tokenizer()(captions, padding="max_length", return_tensors="pt").input_ids
    parts = ids[:, :tokens].split(32)
    return torch.cat([encoder(part, output_hidden_states=True).hidden_states[-2] for part in parts])


class FewerTokens:
    """Joint attention to a text whose last tokens each stand for several, equal ones: their keys weigh more.

    A caption's 77 tokens are nearly all padding, and padding is nearly all alike, so this is nearly the same attention
    at a third of the cost: after 800 steps the distance from a portrait is .51786 with 24 tokens, .51781 with all 77.
    """

    def __init__(self, image_tokens: int, tokens: int):
        self.bias = torch.zeros(1, 1, 1, image_tokens + tokens)
        if tokens < TOKENS:
            few = tokens - WORDS
            self.bias[..., -few:] = float(np.log((TOKENS - WORDS) / few))

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **_):
        def heads(*parts: Tensor) -> Tensor:
            return torch.stack([part.unflatten(-1, (attn.heads, -1)) for part in parts]).transpose(2, 3)

        image = heads(attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = heads(*(project(encoder_hidden_states) for project in added))
        query = torch.cat([attn.norm_q(image[0]), attn.norm_added_q(text[0])], 2)
        key = torch.cat([attn.norm_k(image[1]), attn.norm_added_k(text[1])], 2)
        value = torch.cat([image[2], text[2]], 2)
        seen = functional.scaled_dot_product_attention(query, key, value, self.bias.to(query.dtype))
        seen = seen.transpose(1, 2).flatten(2)
        image, text = seen.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def train(folder: Path, settings: TeacherSettings = SETTINGS) -> SD3Transformer2DModel:
    """Train into the diffusers folder ``folder`` (text of CLIP-L's width), from nothing.

    Goes on where an earlier run stopped, and loads what is finished. Raises UserError as ``training_loop.train`` does.
    """

    def begin() -> SD3Transformer2DModel:
        network = untrained(TEXT_WIDTH)
        network.set_attn_processor(FewerTokens((GRID // 2) ** 2, settings.tokens))
        return network

    return training_loop.train(folder, settings, lambda: Portraits(settings), begin)


def predict(network: SD3Transformer2DModel, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """x0, float32 [N, 16, 8, 8], from latents x, times t [N] and text of the network's own width."""
    pooled = torch.zeros(len(x), POOLED_WIDTH)
    v = network(x, text, pooled, t * 1000, return_dict=False)[0].float()
    return x - t[:, None, None, None] * v


class Portraits:
    """The lesson (``training_loop.py``): the exact denoiser of drawn portraits, given captions drawn before."""

    def __init__(self, settings: TeacherSettings):
        self.settings = settings
        random = np.random.RandomState(2)
        drawn = [draw_caption(random, item) for item in draw_items(random, settings.captions)]
        names = sorted(set(drawn))
        self.chosen = torch.tensor([names.index(caption) for caption in drawn])
        self.text = encode(names, settings.tokens)
        self.possible = allowed_values([allowed(caption) for caption in names])
        self.asked = [f"a {who} {rest}" for who in ATTRIBUTES["who"] for rest in ASKED]
        self.asked_text = encode(self.asked, settings.tokens)

    def _times(self, draws: torch.Generator) -> Tensor:
        low, high = self.settings.middle
        count = self.settings.batch
        middle = torch.rand(count, generator=draws) < self.settings.middle_share
        spread = torch.rand(count, generator=draws)
        return torch.where(middle, low + (high - low) * spread, 0.03 + 0.97 * spread)

    def loss(self, network: SD3Transformer2DModel, step: int) -> Tensor:
        """Mean square error in x0."""
        settings, draws = self.settings, generator(self.settings.seed, step)
        captions = self.chosen[torch.randint(len(self.chosen), (settings.batch,), generator=draws)]
        possible = {name: values[captions] for name, values in self.possible.items()}
        values = {name: torch.multinomial(mask.float(), 1, generator=draws)[:, 0] for name, mask in possible.items()}
        t = self._times(draws)
        wide = t[:, None, None, None]
        there = torch.rand(settings.batch, generator=draws) >= settings.noise_share
        clean = latents(values) * there[:, None, None, None]
        x = (1 - wide) * clean + wide * torch.randn(clean.shape, generator=draws)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
            x0 = predict(network, x, t, self.text[captions])
        return (x0 - denoise(x, t, possible)).square().mean()

    @torch.no_grad()
    def errors(self, network: SD3Transformer2DModel) -> dict:
        """Share of named portraits right in one step from noise, and how far they lie from any portrait."""
        count = 16
        noise = START * torch.randn(count, CHANNELS, GRID, GRID, generator=torch.Generator().manual_seed(7))
        right, far = 0, 0.0
        for caption, text in zip(self.asked, self.asked_text, strict=True):
            times = torch.full((count,), START)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x0 = predict(network, noise, times, text.expand(count, -1, -1))
            items, distances = read(x0)
            right += sum(fits(caption, item) for item in items)
            far += float(distances.mean())
        return {"one_step_right": right / count / len(self.asked), "one_step_distance": far / len(self.asked)}


# What the log asks of every kind of portrait.
ASKED = ("with glasses", "with a hat", "on a green background")
