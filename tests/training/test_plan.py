"""--dry-run: counts of the real networks without their weights, and what is told of too little room."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from training.distill import distill
from training.errors import UserError
from training.networks.backbones import load_backbone
from training.networks.teachers import Teachers
from training.recipe import config
from training.recipe.config import parse
from training.recipe.savings import remedies
from training.run.machine import out_of_memory_told
from training.run.plan import GIB, network_forwards, plan

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "training/configs"


@pytest.mark.parametrize(
    "name, millions, forwards_tflop", [("sd15", 859.5, 0.80), ("sd21", 865.9, 0.80), ("pixart", 610.9, 1.24)]
)
def test_the_real_backbones_off_line(monkeypatch, name, millions, forwards_tflop):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("asked the network"))
    settings = config.load(CONFIGS / f"{name}.yaml")
    planned = plan(settings)
    assert planned.parameters["denoiser"] / 1e6 == pytest.approx(millions, abs=0.1)
    assert planned.flops / 64 / 11 / 1e12 == pytest.approx(forwards_tflop, rel=0.02)
    assert sum(planned.memory.values()) / GIB < 24
    student = 16 * planned.parameters["denoiser"]
    assert sum(size for use, size in planned.memory.items() if use.startswith("student")) == pytest.approx(
        student + 2 * planned.parameters["denoiser"]
    )


def test_counts_agree_with_a_loaded_model(settings):
    planned = plan(parse(settings))
    backbone = load_backbone("stable_diffusion", settings["teacher"])
    assert planned.parameters["denoiser"] == sum(weight.numel() for weight in backbone.network.parameters())
    teachers = Teachers(backbone.network, parse(settings).lora, backbone.predict)
    assert planned.parameters["LoRA teacher, trainable"] == sum(weight.numel() for weight in teachers.parameters())


def test_kept_activations_agree_with_what_autograd_keeps(settings):
    """Every saved tensor of a real forward, counted by the same hooks of torch, weights aside."""
    for change in ({}, {"batch_size": 4}):
        wanted = parse(settings | change)
        backbone = load_backbone("stable_diffusion", wanted.teacher)
        network, kept = backbone.network.requires_grad_(True), {}
        own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}

        def keep(tensor, own=own, kept=kept):
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        text = backbone.encode(["red"] * wanted.batch_size)
        x, t = torch.randn(wanted.batch_size, *backbone.latent_shape()), torch.zeros(wanted.batch_size).long()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            backbone.output(network, x, t, text)
        real = sum(size for size, _ in kept.values())
        assert plan(wanted).memory["activations kept for one backward"] == pytest.approx(real, rel=0.1)


def test_checkpointing_keeps_less_and_computes_more(settings):
    plain, recomputed = (parse(settings | {"gradient_checkpointing": again}) for again in (False, True))
    key = "activations kept for one backward"
    assert plan(recomputed).memory[key] < plan(plain).memory[key]
    base = {"warm_start": None, "lora": {"updates": 1}}
    assert network_forwards(parse(settings | base)) == 9
    assert network_forwards(parse(settings | base | {"gradient_checkpointing": True})) == 11
    assert network_forwards(parse(settings | base | {"cfg_on": "none"})) == 7


def test_splitting_the_student_divides_what_it_holds():
    settings = config.to_dict(config.load(CONFIGS / "sd15.yaml"))
    split = parse(settings | {"student": settings["student"] | {"shard": True}})
    whole, parts = plan(parse(settings), 8), plan(split, 8)
    for use in ("student, fp32", "student's gradients", "student's adamw states"):
        assert parts.memory[use] == whole.memory[use] / 8
    assert sum(parts.memory.values()) < 0.5 * sum(whole.memory.values())
    assert plan(split, 1).memory == plan(parse(settings), 1).memory


def test_dry_run_prints_config_and_figures(tmp_path):
    command = [sys.executable, "-m", "training", "distill", str(CONFIGS / "pixart.yaml"), "--dry-run"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in ("backbone: pixart", "timestep: 400", "610.9 M parameters", "GiB", "hours", "not measured"):
        assert words in done.stdout
    assert not Path(REPOSITORY / "runs/pixart").exists()


def test_too_little_memory_names_the_settings_that_help(settings, monkeypatch, tmp_path):
    memory = type("Memory", (), {"available": 1000, "total": 1000})
    with monkeypatch.context() as patched:
        patched.setattr(psutil, "virtual_memory", lambda: memory)
        with pytest.raises(UserError, match="Too little memory: .* `gradient_checkpointing: true`, then `micro_b"):
            distill(parse(settings))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["prompts.safetensors"]  # not to be encoded again
    with pytest.raises(UserError, match="Out of memory; set `gradient_checkpointing: true`"):
        with out_of_memory_told(remedies(parse(settings))):
            torch.empty(2**60)
    with pytest.raises(RuntimeError, match="other"):
        with out_of_memory_told(remedies(parse(settings))):
            raise RuntimeError("another trouble")
    everything = {"gradient_checkpointing": True, "micro_batch": 1, "mixed_precision": "bf16"}
    tried = parse(
        settings | everything | {"optimizer": "adamw_8bit", "student": {"lora": {"rank": 2}, "ema_decay": None}}
    )
    assert remedies(tried) == "a larger GPU is needed"


def test_an_unwritable_folder_is_a_sentence(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to .*file"):
        distill(parse(settings | {"output": str(tmp_path / "file/run")}))
