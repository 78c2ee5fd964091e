"""The loop: interrupted and resumed bit for bit, and what it refuses."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from same_bits import same_bits, same_checkpoints

from training.distill import distill
from training.errors import UserError
from training.recipe.config import parse
from training.run.checkpoint import load_newest

REPOSITORY = Path(__file__).parents[2]


RUNNER = """
import json, os, sys, traceback
from training.recipe.config import parse
from training.distill import distill
for line in sys.stdin:  # each run in a fork, which has everything imported
    if not (child := os.fork()):
        try:
            distill(parse(json.loads(line)), resume=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_kill_and_resume_gives_the_same_bits(settings, tmp_path):
    """kill -9 at random moments, of loading, training and saving; then to the end. SNOOPI_KILLS=20 for more of them."""
    kills = int(os.environ.get("SNOOPI_KILLS", "4"))
    settings |= {"steps": 4 + kills}
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    errors = (tmp_path / "stderr").open("w+")
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER], cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=errors, text=True,
    )  # fmt: skip

    def run(name: str, killed_after: float | None = None) -> int:
        runner.stdin.write(json.dumps(settings | {"output": str(tmp_path / name)}) + "\n")
        runner.stdin.flush()
        process = int(runner.stdout.readline())
        if killed_after is not None:
            time.sleep(killed_after)
            with contextlib.suppress(ProcessLookupError):  # it may have come to its end
                os.kill(process, signal.SIGKILL)
        return int(runner.stdout.readline())

    try:
        assert run("warm-up") == 0, (tmp_path / "stderr").read_text()[-2000:]
        start = time.monotonic()
        assert run("run") == 0
        whole = time.monotonic() - start
        results = [run("killed", random.uniform(0, 2 * whole / kills)) for _ in range(kills)]
        assert set(results) <= {0, -signal.SIGKILL} and results.count(-signal.SIGKILL) >= kills // 2, results
        assert run("killed") == 0, (tmp_path / "stderr").read_text()[-2000:]
    finally:
        runner.kill()
        runner.wait()
    uninterrupted, resumed = load_newest(tmp_path / "run"), load_newest(tmp_path / "killed")
    assert resumed.state == uninterrupted.state
    same_checkpoints(uninterrupted, resumed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 8 + kills))  # a line a step, none twice
    print(f"{results.count(-signal.SIGKILL)} of {kills} runs were killed")


def test_a_run_leaves_pictures_figures_and_its_config(settings, tmp_path):
    folder = distill(parse(settings))
    names = {"student.safetensors", "lora.safetensors", "ema.safetensors", "student_optimizer.pt", "lora_optimizer.pt"}
    assert {file.name for file in folder.iterdir()} == names | {"state.json"}
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2  # keep_checkpoints
    assert {file.name for file in (tmp_path / "run/samples").iterdir()} == {
        "step-00000000.png",
        "step-00000004.png",
        "step-00000007.png",
    }
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["warm start"] * 2 + ["lora"] + ["vsd"] * 4
    wanted = {
        "kappa",
        "score_gap",
        "vsd_loss",
        "lora_loss",
        "student_grad_norm",
        "lora_grad_norm",
        "x0_std",
        "diversity",
    }
    assert wanted <= lines[-1].keys() and 0.5 <= lines[-1]["kappa"] <= 4
    student = safetensors.torch.load_file(folder / "student.safetensors")
    assert {tensor.dtype for tensor in student.values()} == {torch.float32}

    with pytest.raises(UserError, match="already holds a run"):
        distill(parse(settings))
    with pytest.raises(UserError, match=r"kappa was \[0.5, 4.0\] and is \[1.0, 4.0\]"):
        distill(parse(settings | {"kappa": [1, 4]}), resume=True)


def test_bf16_on_the_cpu_trains_fp32_masters(settings, tmp_path):
    folder = distill(
        parse(settings | {"mixed_precision": "bf16", "student": {"learning_rate": 1e-6}, "warm_start": None})
    )
    before = safetensors.torch.load_file(f"{settings['teacher']}/unet/diffusion_pytorch_model.safetensors")
    after = safetensors.torch.load_file(folder / "student.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    moved = [key for key in after if not torch.equal(before[key], after[key])]
    # 1e-6 is far below one bf16 step of most weights, and yet they moved
    assert len(moved) > 0.9 * len(after)
    first, last = before["conv_in.weight"], after["conv_in.weight"]
    assert (first.bfloat16() == last.bfloat16()).float().mean() > 0.9 and (first == last).float().mean() < 0.1
    lora = safetensors.torch.load_file(folder / "lora.safetensors")
    assert {tensor.dtype for tensor in lora.values()} == {torch.float32}
    assert any(tensor.any() for key, tensor in lora.items() if "lora_B" in key)  # it did get a gradient


def test_stop_saves_the_step_in_hand(settings, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 1"):
        distill(parse(settings | {"checkpoint_every": 100, "warm_start": None}), stop=lambda: True)
    assert load_newest(tmp_path / "run").state["step"] == 1


def test_nan_skips_the_update_and_stops_with_a_reason(settings, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(settings["teacher"], broken)
    unet = UNet2DConditionModel.from_pretrained(broken / "unet")
    torch.nn.init.constant_(unet.conv_out.bias, 1e30)  # finite, its square is not
    unet.save_pretrained(broken / "unet")
    with pytest.raises(UserError, match="Stopped at step 2: 5 updates were skipped because .* NaN"):
        distill(parse(settings | {"teacher": str(broken), "max_bad_steps": 2, "warm_start": None}))
    student, teacher = load_newest(tmp_path / "run").weights["student"], unet.state_dict()
    same_bits(student, dict(teacher))


def test_prompt_list_too_large_to_keep_is_encoded_on_the_fly(settings):
    distill(parse(settings | {"text_cache_megabytes": 0, "warm_start": None, "steps": 1}))


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (
            lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"short"),
            "Cannot load unet",
        ),
        (lambda folder: (folder / "vae/config.json").unlink(), "Cannot load vae"),
        (lambda folder: (folder / "text_encoder").rename(folder / "elsewhere"), "no folder text_encoder/"),
        (
            lambda folder: (folder / "scheduler/scheduler_config.json").write_text(
                json.dumps(
                    json.loads((folder / "scheduler/scheduler_config.json").read_text()) | {"prediction_type": "sample"}
                )
            ),
            "predicts sample",
        ),
    ],
)
def test_a_bad_teacher_is_a_sentence_and_leaves_no_run(settings, tmp_path, damage, sentence):
    shutil.copytree(settings["teacher"], tmp_path / "bad")
    damage(tmp_path / "bad")
    with pytest.raises(UserError, match=sentence):
        distill(parse(settings | {"teacher": str(tmp_path / "bad")}))
    assert not (tmp_path / "run").exists()
