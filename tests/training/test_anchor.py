"""One real step of the shipped loop against the objective written out by hand.

A run of `distill` leaves a checkpoint a step; from each the next is computed here, in fp64: networks, tokenizers and
CLIP loaded anew by their own libraries, LoRAs merged as W + (a / r) B A, CFG in separate calls, NASA by an attention of
the test's own, gradients by autograd on sum(x0 * stopgrad(w * delta)) / numel, AdamW and EMA by their formulas. AdamW's
moments in a checkpoint hold the gradients that the loop applied. Of the trainer nothing is used but its generator of
random numbers and its reader of checkpoints. Random weights: this proves the mathematics, not quality.

`mutations.py` breaks the loop in many ways and tells which of them a test notices.
"""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderTiny, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch.func import functional_call
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
)

from training.distill import distill
from training.method.draws import STEP, generator
from training.recipe.config import parse
from training.run.checkpoint import load

BATCH = 4
VSD_TIMES, LORA_TIMES = (20, 980), (0, 999)
STUDENT = {"learning_rate": 1e-3, "betas": [0.0, 0.999], "ema_decay": 0.15}
LORA = {
    "rank": 2,
    "alpha": 4,
    "initial_steps": 1,
    "learning_rate": 1e-2,
    "betas": [0.5, 0.99],
    "null_probability": 0.5,
}
CLIP = {"weight": 3.0, "final_weight": 0.0042, "margin": 0.9, "decoder": None, "one_in": 3}
NASA = {"alpha": [0.0, 1.0]}

CASES = {
    "PG-SB": {"start": {"timestep": 999, "noise": "unit"}, "lora": LORA | {"initial_steps": 2}, "micro_batch": None},
    "v": {"teacher": "v", "kappa_per": "sample", "vsd": {"weight": "x0", "x0_weight_cap": 2.0}, "cfg_on": "none",
          "fixed_kappa": 3.0, "lora": LORA | {"weight": "uniform"}},
    "CLIP": {"clip": CLIP, "gradient_clip": 0.01, "student": STUDENT | {"weight_decay": 0.1}, "latent_size": [6, 6],
             "lora": LORA | {"weight_decay": 0.2}, "micro_batch": None},
    "NASA-T": {"nasa": NASA, "lora": LORA | {"updates": 2}},
    "two time scales": {"lora": LORA | {"updates": 3}, "cfg_on": "teacher", "fixed_kappa": 2.25},
    "two time scales, same prompts": {"lora": LORA | {"updates": 2, "fresh_prompts": False}, "cfg_on": "lora",
                                      "fixed_kappa": 1.0},
    "two time scales, same x0": {"lora": LORA | {"updates": 2, "fresh": False}},
    "warm start": {"warm_start": {"steps": 2, "pairs": 6, "sampler_steps": 2, "learning_rate": 1e-4}},
    "PixArt": {"teacher": "pixart", "start": {"timestep": 400, "noise": "vp"}, "kappa": [0.5, 3.0]},
    "PixArt, all at once": {"teacher": "pixart", "start": {"timestep": 400, "noise": "vp"}, "clip": CLIP, "nasa": NASA,
                            "kappa_per": "sample", "student": STUDENT | {"lora": {"rank": 2, "alpha": 3}},
                            "lora": LORA | {"updates": 2}, "gradient_checkpointing": True},
    "SDXL": {"teacher": "sdxl", "start": {"timestep": 399, "noise": "vp"}, "latent_size": [4, 6],
             "warm_start": {"steps": 1, "pairs": 6, "sampler_steps": 2, "learning_rate": 1e-4}},
    "SDXL, v, all at once": {"teacher": "sdxl-v", "start": {"timestep": 399, "noise": "vp"}, "kappa": [0.5, 3.0],
                             "clip": CLIP, "nasa": NASA, "kappa_per": "sample", "lora": LORA | {"updates": 2},
                             "student": STUDENT | {"lora": {"rank": 2, "alpha": 3}}, "gradient_checkpointing": True},
    "SD 3": {"teacher": "sd3", "start": {"timestep": 720, "noise": "vp"}, "lora": LORA | {"weight": "velocity"},
             "warm_start": {"steps": 1, "pairs": 6, "sampler_steps": 2, "learning_rate": 1e-4}},
    "SD 3, all at once": {"teacher": "sd3", "start": {"timestep": 400, "noise": "vp"}, "kappa": [0.5, 3.0],
                          "clip": CLIP, "kappa_per": "sample", "student": STUDENT | {"lora": {"rank": 2, "alpha": 3}},
                          "lora": LORA | {"updates": 2}, "gradient_checkpointing": True},
    "4 steps": {"start": {"timestep": 999, "noise": "unit", "steps": 4}, "lora": LORA | {"updates": 3}},
    "4 steps, v, warm start": {"teacher": "v", "start": {"timestep": 625, "noise": "vp", "steps": 4},
                               "lora": LORA | {"updates": 2, "fresh_prompts": False}, "micro_batch": 1,
                               "warm_start": {"steps": 2, "pairs": 6, "sampler_steps": 2, "learning_rate": 1e-4}},
    "4 steps, PixArt, all at once": {"teacher": "pixart", "clip": CLIP, "nasa": NASA, "kappa_per": "sample",
                                     "start": {"timestep": 400, "noise": "vp", "steps": 4, "later": [330, 200, 90]},
                                     "student": STUDENT | {"lora": {"rank": 2, "alpha": 3}},
                                     "lora": LORA | {"updates": 2}, "gradient_checkpointing": True},
    "4 steps, SD 3": {"teacher": "sd3", "start": {"timestep": 720, "noise": "vp", "steps": 4},
                      "lora": LORA | {"updates": 3, "weight": "velocity"}},
    "scores apart": {"kappa": [2.0, 4.0], "kappa_lora": [0.5, 1.5],
                     "vsd": {"timesteps_lora": [300, 400], "weight": "x0", "x0_weight_cap": 2.0}},
    "scores apart, SD 3": {"teacher": "sd3", "start": {"timestep": 720, "noise": "vp"}, "kappa_per": "sample",
                           "kappa_lora": [1.0, 1.0], "vsd": {"timesteps": [600, 980], "timesteps_lora": [20, 500]},
                           "lora": LORA | {"weight": "velocity"}},
}  # fmt: skip
#: The steps of a student of four, from where it starts.
FOUR = {999: [999, 749, 499, 249], 625: [625, 468, 312, 156], 400: [400, 330, 200, 90], 720: [720, 540, 360, 180]}
BACKBONES = {"pixart": "pixart", "sd3": "stable_diffusion3", "sdxl": "stable_diffusion_xl",
             "sdxl-v": "stable_diffusion_xl"}  # fmt: skip


@pytest.fixture
def run(settings, teacher, pixart, sd3, sdxl, clip, tmp_path, request):
    """The settings of one case, and the folder of the shipped trainer's run with them."""
    case = CASES[request.param]
    kind = case.get("teacher", "eps")
    folders = {"pixart": pixart, "sd3": sd3, "sdxl": sdxl, "sdxl-v": sdxl}
    folder = shutil.copytree(folders.get(kind, teacher), tmp_path / "teacher")
    if kind.endswith("v"):
        scheduler = folder / "scheduler/scheduler_config.json"
        scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    if "clip" in case:  # pictures with some of their pixels outside 0..1
        vae = AutoencoderTiny.from_pretrained(folder / "vae")
        vae.decoder.layers[-1].weight.data *= 20
        vae.save_pretrained(folder / "vae")
    (tmp_path / "negatives.txt").write_text("ugly\nblurry pet\na blue square\n")
    plain = {
        "seed": 6,
        "batch_size": BATCH,
        "micro_batch": 2,
        "steps": 2,
        "kappa": [0.5, 4.0],
        "warm_start": None,
        "student": STUDENT,
        "lora": LORA,
        "keep_checkpoints": 10,
        "sample_every": 100,
    }
    paths = {"teacher": str(folder), "backbone": BACKBONES.get(kind, "stable_diffusion")}
    whole = settings | plain | case | paths
    if "clip" in case:
        whole["clip"] = CLIP | {"model": str(clip)}
    if "nasa" in case:
        whole["nasa"] = NASA | {"prompts": str(tmp_path / "negatives.txt")}
    distill(parse(whole))
    return whole, tmp_path / "run"


@pytest.mark.parametrize("run", CASES, indirect=True)
def test_every_step_is_the_objective_by_hand(run):
    settings, folder = run
    saved = [load(path) for path in sorted((folder / "checkpoints").iterdir())]
    assert len(saved) >= 3
    first = torch.cat([weight.flatten() for name, weight in saved[0].weights["lora"].items() if "lora_A" in name])
    assert abs(first.std() * LORA["rank"] - 1) < 0.1  # gaussian; its gradient is 0 while lora_B is
    hand = ByHand(settings, folder)
    tolerance = 1e-3 if settings.get("clip") else 1e-4  # rounding puts some of the decoder's ReLUs on the other side
    for step, (before, after) in enumerate(zip(saved, saved[1:], strict=False), start=1):
        student, lora, ema = hand.after(step, before)
        for role, wanted in (("student", student), ("lora", lora)):
            place, states = f"{role} after step {step + 1}", after.optimizers[role]["state"]
            for key, moments in (("exp_avg", wanted.first), ("exp_avg_sq", wanted.second)):
                if wanted.updated:
                    found = {name: states[index][key] for index, name in enumerate(wanted.weights)}
                    assert_close(found, moments, f"{place}, {key}", tolerance, floor=1e-5)
            moves, real = ({name: now[name].double() - before.weights[role][name] for name in wanted.weights}
                           for now in (wanted.weights, after.weights[role]))  # fmt: skip
            assert_close(real, moves, f"{place}, weights", tolerance=1e-2, floor=1e-2)  # AdamW enlarges rounding
        if step >= hand.warm_steps:
            old, now = before.weights.get("ema", before.weights["student"]), after.weights["student"]
            for name, average in after.weights["ema"].items():
                torch.testing.assert_close(average, torch.lerp(old[name], now[name], 1 - ema), rtol=1e-6, atol=1e-7)
    hand.check_coverage()


def assert_close(found, wanted, place, tolerance, floor):
    """Of each tensor |found - wanted| <= tolerance |wanted| + floor |all of them|: tiny ones are rounding alone."""
    whole = torch.stack([tensor.norm() for tensor in wanted.values()]).norm()
    for name, tensor in wanted.items():
        distance = (found[name].double() - tensor).norm()
        assert distance <= tolerance * tensor.norm() + floor * whole, f"{place}, {name}: {distance / tensor.norm():.1e}"


class AttentionByHand:
    """softmax(Q K^T / sqrt(d) + bias) V, in cross-attention less alpha times the same with the negative prompt."""

    def __init__(self, network):
        self.project = getattr(network, "caption_projection", None) or (lambda text: text)
        self.away = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if encoder_hidden_states is None:
            z = self.attend(attn, hidden_states, hidden_states, None)
        else:
            z = self.attend(attn, hidden_states, encoder_hidden_states, attention_mask)
            if self.away:
                (negative, mask, *_), alpha = self.away
                bias = None if mask is None else -10_000.0 * (1 - mask.double())[:, None]
                z = z - alpha * self.attend(attn, hidden_states, self.project(negative), bias)
        return attn.to_out[0](z)

    @staticmethod
    def attend(attn, pixels, text, bias):
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, pixels), (attn.to_k, text), (attn.to_v, text))
        )
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[:, None]
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class ByHand:
    """What a step does to student, LoRA teacher and average. Shapes and names are diffusers'."""

    def __init__(self, settings, folder):
        self.settings, self.folder = settings, folder
        source = Path(settings["teacher"])
        self.pixart, self.sd3 = settings["backbone"] == "pixart", settings["backbone"] == "stable_diffusion3"
        self.sdxl = settings["backbone"] == "stable_diffusion_xl"
        kind, part = (PixArtTransformer2DModel, "transformer") if self.pixart else (UNet2DConditionModel, "unet")
        if self.sd3:
            kind, part = SD3Transformer2DModel, "transformer"
        self.network = kind.from_pretrained(source / part).double().requires_grad_(False)
        self.channels = self.network.config.in_channels
        self.attention = AttentionByHand(self.network)
        if not self.sd3:
            self.network.set_attn_processor(self.attention)
        schedule = json.loads((source / "scheduler/scheduler_config.json").read_text())
        self.predicts_v = schedule.get("prediction_type") == "v_prediction"
        if self.sd3:
            self.sigma = torch.arange(1000, dtype=torch.float64) / 1000
            self.alpha = 1 - self.sigma
        else:
            first, last = schedule["beta_start"], schedule["beta_end"]
            betas = torch.linspace(first, last, 1000, dtype=torch.float64)
            if schedule["beta_schedule"] == "scaled_linear":
                betas = torch.linspace(first**0.5, last**0.5, 1000, dtype=torch.float64) ** 2
            self.alpha, self.sigma = (1 - betas).cumprod(0).sqrt(), (1 - (1 - betas).cumprod(0)).sqrt()
        if self.sd3 or self.sdxl:
            kinds = (CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel)[: 3 if self.sd3 else 2]
            self.encoders = [
                (AutoTokenizer.from_pretrained(source / f"tokenizer{end}"),
                 kind.from_pretrained(source / f"text_encoder{end}").double())
                for kind, end in zip(kinds, ("", "_2", "_3"), strict=False)
            ]  # fmt: skip
        elif self.pixart:
            self.tokenizer = AutoTokenizer.from_pretrained(source / "tokenizer")
            self.encoder = T5EncoderModel.from_pretrained(source / "text_encoder").double()
        else:
            self.tokenizer = CLIPTokenizer.from_pretrained(source / "tokenizer")
            self.encoder = CLIPTextModel.from_pretrained(source / "text_encoder").double()
        if settings.get("clip"):
            self.clip = CLIPModel.from_pretrained(settings["clip"]["model"]).double().requires_grad_(False)
            self.clip_tokenizer = CLIPTokenizer.from_pretrained(settings["clip"]["model"])
            self.vae = AutoencoderTiny.from_pretrained(source / "vae").double().requires_grad_(False)
        self.warm_steps = settings["warm_start"]["steps"] if settings["warm_start"] else 0
        self.prompts = Path(settings["prompts"]).read_text().splitlines()
        self.size = settings.get("latent_size") or [4, 4]
        self.blind, self.outside, self.clip_losses, self.places = set(), [], [], set()

    # --- networks -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, prompts):
        """Embeddings and mask; CLIP has none; SDXL and SD 3 have a pooled vector."""
        if self.sd3 or self.sdxl:
            read = []
            for tokenizer, encoder in self.encoders:
                ids = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
                read.append(encoder(ids, output_hidden_states=True))
            clip_l, clip_g = read[:2]
            clips = torch.cat([clip_l.hidden_states[-2], clip_g.hidden_states[-2]], -1)
            if self.sdxl:
                return clips, None, clip_g.text_embeds
            both = torch.cat([clip_l.pooler_output, clip_g.text_embeds], -1)
            config = self.network.config
            zeros = clips.new_zeros(len(prompts), 77, config.joint_attention_dim - clips.shape[-1])
            more = both.new_zeros(len(prompts), config.pooled_projection_dim - both.shape[-1])
            tokens = torch.cat([torch.cat([clips, zeros], -1), read[2].last_hidden_state], 1)
            return tokens, None, torch.cat([both, more], -1)
        if not self.pixart:
            ids = self.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
            return self.encoder(ids).last_hidden_state, None
        lower = [prompt.lower() for prompt in prompts]
        read = self.tokenizer(lower, padding="max_length", max_length=120, return_tensors="pt")
        return self.encoder(read.input_ids, attention_mask=read.attention_mask)[0], read.attention_mask

    def eps(self, weights, x_t, t, text, away=None):
        """The noise that the network with these weights in place of its own sees in x_t."""
        self.attention.away = away
        named = {"timestep": t, "encoder_hidden_states": text[0], "return_dict": False}
        if self.pixart:
            named |= {"encoder_attention_mask": text[1]}
            named |= {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        if self.sdxl:  # the picture as large as it is, twice, and where it was cropped between
            height, width = (8 * side for side in self.size)
            sizes = x_t.new_tensor([height, width, 0, 0, height, width]).expand(len(x_t), 6)
            named["added_cond_kwargs"] = {"text_embeds": text[2], "time_ids": sizes}
        if self.sd3:
            named["pooled_projections"] = text[2]
            v = functional_call(self.network, weights, (x_t,), named)[0]
            return x_t + self.at(self.alpha, t) * v  # v = eps - x0
        said = functional_call(self.network, weights, (x_t,), named)[0][:, :4]
        return self.at(self.alpha, t) * said + self.at(self.sigma, t) * x_t if self.predicts_v else said

    def guided(self, weights, x_t, t, text, away, kappa):
        with_text, without = self.eps(weights, x_t, t, text), self.eps(weights, x_t, t, away)
        return without + kappa * (with_text - without)

    def picture(self, weights, noises, text, away):
        """x0 of the student in one step, or for each sample in that of its steps which it is asked for."""
        start = self.settings["start"]
        z, places, fresh = noises
        t = torch.full((len(z),), start["timestep"])
        x = z if start["noise"] == "unit" else self.at(self.sigma, t) * z
        for row, place in enumerate(() if places is None else places.tolist()):
            one, listed = slice(row, row + 1), FOUR[start["timestep"]]
            steer = away and (rows(away[0], one), away[1])
            self.places.add(place)
            for before in range(place):
                with torch.no_grad():
                    x0 = self.x0(weights, x[one], t[one], rows(text, one), steer)
                t[one] = listed[before + 1]
                noisy = self.at(self.alpha, t[one]) * x0 + self.at(self.sigma, t[one]) * fresh[before][one]
                x = torch.cat([x[:row], noisy, x[row + 1 :]])
        return self.x0(weights, x, t, text, away)

    def x0(self, weights, x, t, text, away):
        return (x - self.at(self.sigma, t) * self.eps(weights, x, t, text, away)) / self.at(self.alpha, t)

    def merged(self, adapter, settings):
        """Weights W + (a / r) B A by name."""
        scale, found = settings["alpha"] / settings["rank"], {}
        for name in sorted({key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in adapter}):
            a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            found[name + ".weight"] = self.network.get_parameter(name + ".weight") + scale * b @ a
        return found

    def names(self, state, targets):
        """Of all trainable weights, in the optimiser's order."""
        if not any("lora_" in name for name in state):
            return [name for name, _ in self.network.named_parameters()]
        layers = [name for name, _ in self.network.named_modules() if name.endswith(targets)]
        return [f"base_model.model.{name}.lora_{part}.weight" for name in layers for part in "AB"]

    def at(self, table, t):
        return table[t][:, None, None, None]

    def stream(self, count, position):
        """The places [position, position + BATCH) of endless shuffled passes over `count` things."""
        passes = [numpy.random.default_rng((self.settings["seed"], number)).permutation(count) for number in range(60)]
        return numpy.concatenate(passes)[position : position + BATCH].tolist()

    # --- one step -------------------------------------------------------------------------------------------------
    def after(self, step, before):
        """Student and LoRA after the step, and the decay of the average, 1 where it stays."""
        s = self.settings
        warm = self.warm_steps
        first_vsd = warm + s["lora"]["initial_steps"]
        student = self.load(before, "student", (".to_q", ".to_k", ".to_v", ".to_out.0"))
        lora = self.load(before, "lora", (".to_q", ".to_v"))
        if step == warm:  # VSD has an optimiser of its own
            student.forget()
        random = generator(self.settings["seed"], STEP, step)

        def randn():
            return torch.randn((BATCH, self.channels, *self.size), generator=random).double()

        if step < warm:
            x0, target = self.warm_pair(step, student)  # of a student of several steps the first alone
            self.update(student, (x0 - target).square().mean(), s["warm_start"] | {"betas": [0.9, 0.999]})
            return student, lora, 1.0

        def noises():
            """z, and of a student of four steps which of them each sample is asked for, and the noise between them."""
            z, several = randn(), s["start"].get("steps", 1) > 1
            places = torch.randint(4, (BATCH,), generator=random) if several else None
            return z, places, [randn() for _ in range(3)] if several else []

        fresh, fresh_prompts = s["lora"].get("fresh", True), s["lora"].get("fresh_prompts", True)
        updates = s["lora"].get("updates", 1)
        batches = updates if fresh and fresh_prompts else 1
        z = noises()
        alpha = s["nasa"]["alpha"][1] * torch.rand((), generator=random).item() if s.get("nasa") else 0
        prompts, text, away, steer = self.batch(step - warm, batches, 0, alpha)
        null = self.encode([""] * BATCH)
        x0, ema = None, 1.0
        if step >= first_vsd:
            low, high = s["kappa"]
            count = BATCH if s.get("kappa_per") == "sample" else 1
            kappa = low + (high - low) * torch.rand((count, 1, 1, 1), generator=random).double()
            kappa_lora = kappa
            if "kappa_lora" in s:
                low, high = s["kappa_lora"]
                kappa_lora = low + (high - low) * torch.rand((count, 1, 1, 1), generator=random).double()
            on, fixed = s.get("cfg_on", "both"), s.get("fixed_kappa", 1.0)
            vsd = {"timesteps": VSD_TIMES, "timesteps_lora": None, "weight": "sigma_squared"} | s.get("vsd", {})
            t, noise = torch.randint(vsd["timesteps"][0], vsd["timesteps"][1] + 1, (BATCH,), generator=random), randn()
            own = t
            if vsd["timesteps_lora"]:
                own = torch.randint(vsd["timesteps_lora"][0], vsd["timesteps_lora"][1] + 1, (BATCH,), generator=random)
            x0 = self.picture(student.network(), z, text, steer)
            x_t, own_x = (self.at(self.alpha, at) * x0.detach() + self.at(self.sigma, at) * noise for at in (t, own))
            with torch.no_grad():
                teacher = self.guided({}, x_t, t, text, away, kappa if on in ("both", "teacher") else fixed)
                scale = kappa_lora if on in ("both", "lora") else fixed
                follower = self.guided(lora.network(), own_x, own, text, null, scale)
            weight, own_weight = (self.at(self.sigma, at).square() for at in (t, own))
            if vsd["weight"] == "x0":
                weight, own_weight = (
                    (self.at(self.sigma, at) / self.at(self.alpha, at)).clamp(max=vsd["x0_weight_cap"])
                    for at in (t, own)
                )
            pull = weight * (teacher - noise) - own_weight * (follower - noise)
            objective = (x0 * pull.detach()).sum() / x0.numel()
            if s.get("clip"):
                fallen = CLIP["weight"] * 0.0014 ** ((step - first_vsd) / s["steps"])
                objective = objective + fallen * self.clip_loss(x0, prompts)
            self.update(student, objective, s["student"])
            number = step - first_vsd
            ema = min(STUDENT["ema_decay"], (1 + number) / (10 + number))

        for index in range(updates):
            if index and fresh:
                z, x0 = noises(), None
                if fresh_prompts:
                    _, text, _, steer = self.batch(step - warm, batches, index, alpha)
            if x0 is None:
                x0 = self.picture(student.network(), z, text, steer)
            t, noise = torch.randint(LORA_TIMES[0], LORA_TIMES[1] + 1, (BATCH,), generator=random), randn()
            blind = bool(torch.rand((), generator=random) < s["lora"]["null_probability"])
            self.blind.add(blind)
            x_t = self.at(self.alpha, t) * x0.detach() + self.at(self.sigma, t) * noise
            error = (self.eps(lora.network(), x_t, t, null if blind else text) - noise).square()
            power = {"uniform": 0, "velocity": -2}.get(s["lora"].get("weight"), 2)
            weight = self.at(self.alpha, t) ** power
            self.update(lora, (weight * error).mean(), s["lora"])
        return student, lora, ema

    def load(self, before, role, targets):
        state, moments = before.weights[role], before.optimizers[role]["state"]
        return Trained(self, self.settings[role], {name: state[name] for name in self.names(state, targets)}, moments)

    def update(self, trained, objective, settings):
        """Gradients of the objective, clipped together, then AdamW."""
        leaves = list(trained.weights.values())
        gradients = torch.autograd.grad(objective, leaves)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        factor = min(1.0, self.settings.get("gradient_clip", 1.0) / (norm + 1e-6))
        trained.adamw([factor * gradient for gradient in gradients], settings)

    def batch(self, step, batches, number, alpha):
        """Prompts; encoded they, what the frozen teacher's CFG goes away from, and what the student does."""
        position = (step * batches + number) * BATCH
        prompts = [self.prompts[index] for index in self.stream(len(self.prompts), position)]
        text, away, steer = self.encode(prompts), self.encode([""] * BATCH), None
        if self.settings.get("nasa"):
            negatives = Path(self.settings["nasa"]["prompts"]).read_text().splitlines()
            away = self.encode([negatives[index] for index in self.stream(len(negatives), position)])
            steer = (away, alpha)
        return prompts, text, away, steer

    def clip_loss(self, x0, prompts):
        """mean of relu(tau - cos) over one sample in so many, of pictures as PNGs have them: between 0 and 1."""
        rows = range(0, BATCH, CLIP["one_in"])
        latents = x0[rows] / self.vae.config.scaling_factor + self.vae.config.shift_factor
        pictures = self.vae.decode(latents).sample / 2 + 0.5
        self.outside.append(((pictures < 0) | (pictures > 1)).double().mean().item())
        pictures = torch.nn.functional.interpolate(pictures.clamp(0, 1), (32, 32), mode="bicubic", antialias=True)
        mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        pictures = (pictures - x0.new_tensor(mean)[:, None, None]) / x0.new_tensor(deviation)[:, None, None]
        texts = [prompts[row] for row in rows]
        ids = self.clip_tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        seen = self.clip(input_ids=ids, pixel_values=pictures)
        loss = (CLIP["margin"] - seen.logits_per_image.diagonal() / self.clip.logit_scale.exp()).relu().mean()
        self.clip_losses.append(loss.item())
        return loss

    def warm_pair(self, step, student):
        """The student's pictures and the teacher's, by two steps of its sampler with CFG 3: DDIM's from 999 and 499;
        of a flow model with a shift of 3 from its ends, 1000 (999 here) and 3, which the shift makes 9."""
        pairs = safetensors.torch.load_file(self.folder / "warm_start/pairs-000000.safetensors")
        rows = self.stream(len(pairs["z"]), step * BATCH)
        z, text = pairs["z"][rows].double(), self.encode([self.prompts[index] for index in pairs["prompt"][rows]])
        x, null = z, self.encode([""] * BATCH)
        second = 9 if self.sd3 else 499
        for t, then in ((999, second), (second, None)):
            times = torch.full((BATCH,), t)
            with torch.no_grad():
                eps = self.guided({}, x, times, text, null, 3.0)
            x = (x - self.sigma[t] * eps) / self.alpha[t]
            if then is not None:
                x = self.alpha[then] * x + self.sigma[then] * eps
        return self.picture(student.network(), (z, None, []), text, None), x

    def check_coverage(self):
        """A case that never met what it is there for would prove nothing."""
        if self.settings["lora"].get("updates", 1) > 1:
            assert self.blind == {True, False}
        if self.settings["start"].get("steps", 1) > 1:
            assert self.places == {0, 1, 2, 3}
        if self.settings.get("clip"):
            assert all(0 < share < 1 for share in self.outside) and all(loss > 0 for loss in self.clip_losses)


def rows(text, some):
    """Those prompts of embeddings, mask and whatever else there is."""
    return tuple(None if part is None else part[some] for part in text)


class Trained:
    """Trainable weights, fp64, by name, and AdamW's moments; `moments` by number, as PyTorch keeps them."""

    def __init__(self, hand, settings, weights, moments):
        self.hand, self.settings, self.updated = hand, settings, False
        self.weights = {name: weight.double().requires_grad_() for name, weight in weights.items()}
        self.forget()
        if moments:
            self.count = int(moments[0]["step"])
            self.first, self.second = (
                {name: moments[index][key].double() for index, name in enumerate(weights)}
                for key in ("exp_avg", "exp_avg_sq")
            )

    def forget(self):
        self.count, self.first, self.second = 0, dict.fromkeys(self.weights, 0.0), dict.fromkeys(self.weights, 0.0)

    def network(self):
        """Weights for the network, a LoRA merged."""
        adapter = self.settings if "rank" in self.settings else self.settings.get("lora")
        return self.hand.merged(self.weights, adapter) if adapter else self.weights

    def adamw(self, gradients, settings):
        rate, (beta1, beta2) = settings["learning_rate"], settings["betas"]
        self.count, self.updated = self.count + 1, True
        for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
            first = self.first[name] = beta1 * self.first[name] + (1 - beta1) * gradient
            second = self.second[name] = beta2 * self.second[name] + (1 - beta2) * gradient**2
            step = first / (1 - beta1**self.count) / ((second / (1 - beta2**self.count)).sqrt() + 1e-8)
            decayed = weight.detach() * (1 - rate * settings.get("weight_decay", 0.0))
            self.weights[name] = (decayed - rate * step).requires_grad_()
