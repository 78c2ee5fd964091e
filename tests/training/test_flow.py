"""Stable Diffusion 3.x, a flow model, in small: its text, its translation, its start, its runs. Random weights."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from same_bits import goes_on_to_the_same_bits
from small_models import make_sd3

from training.distill import distill
from training.errors import UserError
from training.export.stable_diffusion3 import transformer_state
from training.method.warm_start import ddim_sample
from training.networks.backbones import load_backbone
from training.recipe.config import load, parse
from training.run.plan import plan

START = {"timestep": 720, "noise": "vp"}


@pytest.fixture(scope="module")
def backbone(sd3):
    return load_backbone("stable_diffusion3", str(sd3))


@pytest.fixture
def flow(settings, sd3):
    """A run of a few steps through all three phases; every sample with draws of its own."""
    return settings | {
        "backbone": "stable_diffusion3",
        "teacher": str(sd3),
        "start": START,
        "batch_size": 4,
        "steps": 2,
        "kappa_per": "sample",
        "student": {"learning_rate": 1e-6, "betas": [0, 0.99], "ema_decay": 0.9},
        "warm_start": {"steps": 1, "pairs": 4, "sampler_steps": 2},
        "lora": {"rank": 2, "alpha": 2, "initial_steps": 1, "weight": "velocity", "betas": [0, 0.99]},
    }


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def test_what_the_network_says_is_translated_to_noise_and_to_picture(backbone):
    text, t = backbone.encode(["red", "a pet"]), torch.tensor([720, 720])
    z = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    x = 0.72 * z
    pooled = torch.cat([text.pooled, torch.zeros(2, 1)], 1)  # 15 wide, and the network takes 16
    v = backbone.network(x, text.embeddings, pooled, t, return_dict=False)[0]
    found = backbone.one_step(backbone.network, z, text, 720, "vp")
    torch.testing.assert_close(found, x - 0.72 * v)
    torch.testing.assert_close(backbone.predict(backbone.network, x, t, text), x + 0.28 * v)
    assert not torch.allclose(found[0], found[1])
    noisy = backbone.add_noise(found, z, torch.tensor([250, 250]))
    torch.testing.assert_close(noisy, 0.75 * found + 0.25 * z)


@torch.no_grad()
def test_the_teachers_sampler_is_diffusers_own_but_for_whole_timesteps(backbone):
    """20 steps with the scheduler's shift of 3; timesteps are rounded, and the first is 999 in place of 1000."""
    text, null = backbone.encode(["red"]), backbone.encode([""])
    z = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))

    def predict(x_t, t, words):
        return backbone.predict(backbone.network, x_t, t, words)

    found = ddim_sample(backbone.sampler, predict, z, text, null, 20, 1.0)
    scheduler, x = FlowMatchEulerDiscreteScheduler(shift=3.0), z
    scheduler.set_timesteps(20)
    for t in scheduler.timesteps:
        x = scheduler.step(backbone.output(backbone.network, x, t.expand(1), text), t, x).prev_sample
    assert (found - x).norm() < 0.01 * x.norm()


@pytest.mark.parametrize(
    "clip_g, t5, tokens, width", [(False, False, 77, 8), (True, False, 77, 18), (False, True, 154, 20)]
)
def test_text_encoders_that_are_not_there_take_no_tokens(tmp_path, clip_g, t5, tokens, width):
    backbone = load_backbone("stable_diffusion3", str(make_sd3(tmp_path / "t", clip_g, t5)))
    text = backbone.encode(["red"])
    assert text.embeddings.shape == (1, tokens, width) and text.pooled.shape == (1, 8 + 7 * clip_g)
    assert backbone.text_shape == (tokens, 20, False, 16)


def test_a_single_file_gives_what_the_folder_gives(backbone, sd3, teacher, tmp_path):
    """An exported transformer in the original layout, another's weights in it, and one in diffusers' names."""
    state = {key: 1.01 * tensor for key, tensor in backbone.network.state_dict().items()}
    for number, tensors in enumerate((transformer_state(state), state)):
        path = tmp_path / f"{number}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        read = load_backbone("stable_diffusion3", str(path), parts=str(sd3)).network.state_dict()
        assert all(torch.equal(read[key], tensor) for key, tensor in state.items())
    with pytest.raises(UserError, match="holds no Stable Diffusion 3 transformer"):
        unet = str(teacher / "unet/diffusion_pytorch_model.safetensors")
        load_backbone("stable_diffusion3", unet, parts=str(sd3))


def names_t5(folder):
    kind = ["transformers", "T5EncoderModel"]
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusion3Pipeline", "text_encoder": kind, "text_encoder_3": kind})
    )
    shutil.rmtree(folder / "text_encoder_3")


def scheduler(**changes):
    return lambda folder: change_json(folder / "scheduler/scheduler_config.json", **changes)


DAMAGE = {
    "a T5 that is named and not there": (names_t5, "has no folder text_encoder_3/, though its model_index.json names"),
    "no CLIP-L": (lambda folder: shutil.rmtree(folder / "text_encoder"), "has no CLIP-L .text_encoder/."),
    "no transformer": (lambda folder: shutil.rmtree(folder / "transformer"), "has no folder transformer/"),
    "no autoencoder": (lambda folder: shutil.rmtree(folder / "vae"), "has no folder vae/"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), "has no folder scheduler/"),
    "no tokenizer of T5": (lambda folder: shutil.rmtree(folder / "tokenizer_3"), "has no folder tokenizer_3/"),
    "T5 of another width": (
        lambda folder: change_json(folder / "text_encoder_3/config.json", d_model=24),
        "the text encoder is 24 wide, the transformer wants 20",
    ),
    "CLIPs too wide": (
        lambda folder: change_json(folder / "text_encoder_2/config.json", hidden_size=64),
        "its CLIPs are 72 wide together",
    ),
    "a schedule of betas": (
        scheduler(_class_name="DDIMScheduler"),
        "has the scheduler DDIMScheduler; this backbone is",
    ),
    "dynamic shift": (scheduler(use_dynamic_shifting=True), "has use_dynamic_shifting or invert_sigmas"),
    "100 timesteps": (scheduler(num_train_timesteps=100), "has num_train_timesteps 100; a flow model"),
    "shift 0": (scheduler(shift=0.0), "gives no timesteps that fall .*shift 0.0"),
    "shift no number": (scheduler(shift="x"), "cannot be read"),
}


@pytest.mark.parametrize("damage, sentence", DAMAGE.values(), ids=DAMAGE)
def test_a_folder_that_cannot_be_trained_is_one_sentence(sd3, tmp_path, damage, sentence):
    folder = shutil.copytree(sd3, tmp_path / "t")
    damage(folder)
    with pytest.raises(UserError, match=sentence) as told:
        load_backbone("stable_diffusion3", str(folder)).encode(["red"])
    assert "\n" not in str(told.value) and ";" in str(told.value)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"start": {"timestep": 0, "noise": "vp"}}, "start.timestep is 0; allowed is a whole number from 1 to 999"),
        (
            {"start": {"timestep": 1000, "noise": "vp"}},
            "start.timestep is 1000; allowed is a whole number from 1 to 999",
        ),
        ({"start": {"timestep": 0.72, "noise": "vp"}}, "start.timestep is 0.72; allowed is a whole number"),
        ({"start": {"timestep": 1, "noise": "vp"}}, "thousandths of t, so that is t = 0.001"),
        ({"start": {"timestep": 720}}, "start.noise is unit; a flow model's first input is t times the noise"),
        ({"latent_size": [14, 4]}, "the positions of this network end at 12"),
        ({"nasa": {}}, "this network has joint attention"),
    ],
)
def test_settings_that_no_flow_model_can_have_are_one_sentence(flow, change, sentence):
    with pytest.raises(UserError, match=sentence):
        distill(parse(flow | change))


def test_a_flow_model_of_another_backbone_is_sent_to_its_own(teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "t")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler; .*`backbone: stable_diffusion3`"):
        load_backbone("stable_diffusion", str(folder))


def test_a_stopped_run_goes_on_to_the_same_bits(flow, tmp_path):
    goes_on_to_the_same_bits(flow, tmp_path / "stopped")


def test_the_recipe_for_medium_at_full_size_off_line(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asked the network"))
    planned = plan(load("training/configs/sd35-medium.yaml"))
    assert planned.parameters["denoiser"] / 1e6 == pytest.approx(2243.2, abs=0.1)
    assert sum(planned.memory.values()) / 2**30 < 24
