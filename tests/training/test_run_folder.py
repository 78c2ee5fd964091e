"""One run folder: a lock for its process, and what a resumed run may and may not change."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from training.commands.encode import encode_config
from training.distill import distill
from training.errors import UserError
from training.files import claimed
from training.recipe.config import parse
from training.run import made_of as contents
from training.run.checkpoint import load_newest, newest_first

# The lock that `claimed` takes, by another process; without the trainer, whose imports take seconds.
HOLDER = """
import sys, time, filelock
with filelock.FileLock(sys.argv[1] + "/.lock"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def short(settings) -> dict:
    return settings | {"steps": 1, "warm_start": None, "lora": {"rank": 2, "alpha": 2}, "sample_every": 100}


@pytest.fixture
def holder():
    """Starts processes that hold a folder each."""
    started = []

    def hold(folder: Path) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_two_processes_in_one_folder_and_a_killed_one_leaves_it_free(short, tmp_path, holder):
    run, encoded = tmp_path / "run", tmp_path / "encoded"
    first = holder(run)
    with pytest.raises(UserError, match="Another process is at work in .*run; wait for its end"):
        distill(parse(short))
    assert not (run / "config.yaml").exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    distill(parse(short))
    assert not (run / ".lock").exists()

    second = holder(encoded)
    with pytest.raises(UserError, match="Another process is at work in .*encoded"):
        encode_config(parse(short | {"encoded_prompts": str(encoded)}))
    second.kill()
    second.wait()
    encode_config(parse(short | {"encoded_prompts": str(encoded)}))


def test_a_lock_leaves_nothing_where_nothing_came_of_it(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to .*file"), claimed(tmp_path / "file"):
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="Cannot write to .* \\(Permission denied\\)"), claimed(tmp_path / "new"):
        pass


def test_the_same_contents_elsewhere_go_on(short, clip, tmp_path):
    """Prompts, teacher, CLIP, negatives and encoded prompts moved; paths, pictures, logs and trackers changed."""
    full = short | {
        "clip": {"model": str(clip), "decoder": None, "one_in": 1},
        "nasa": {"prompts": short["prompts"]},
        "student": {"start_from": short["teacher"]},
    }
    encoded = tmp_path / "encoded"
    encode_config(parse(full | {"encoded_prompts": str(encoded)}))
    distill(parse(full | {"encoded_prompts": str(encoded)}))
    teacher = str(shutil.copytree(short["teacher"], tmp_path / "elsewhere"))
    model = str(shutil.copytree(clip, tmp_path / "clip elsewhere"))
    lines = (Path(short["prompts"])).read_text().splitlines()
    moved = tmp_path / "prompts.jsonl"
    moved.write_text("".join(json.dumps({"words": line}) + "\n" for line in lines))
    shutil.move(encoded, tmp_path / "encoded elsewhere")
    shutil.copy(short["prompts"], tmp_path / "negatives.txt")
    (tmp_path / "prompts.txt").unlink()
    changed = full | {
        "teacher": teacher,
        "prompts": str(moved),
        "prompt_column": "words",
        "skip_bad_prompts": True,
        "clip": {"model": model, "decoder": None, "one_in": 1},
        "nasa": {"prompts": str(tmp_path / "negatives.txt")},
        "student": {"start_from": teacher},
        "encoded_prompts": str(tmp_path / "encoded elsewhere"),
        "steps": 2,
        "log_every": 7,
        "sample_every": 9,
        "samples_per_prompt": 2,
        "keep_checkpoints": 1,
        "checkpoint_every": 5,
        "text_cache_megabytes": 0,
        "max_bad_steps": 3,
        "tracker": "tensorboard",
    }
    assert distill(parse(changed), resume=True).name == "step-00000002"


def change_file(folder: Path, name: str) -> None:
    """One weight of a file a little larger."""
    path = folder / name
    tensors = safetensors.torch.load_file(path)
    key = max(tensors, key=lambda key: tensors[key].numel())
    tensors[key] = tensors[key] * 1.1
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CHANGES = {
    "prompts.txt": (lambda folder: (folder / "prompts.txt").write_text("other\nwords\n"), "the prompts (prompts)"),
    "negatives.txt": (lambda folder: (folder / "negatives.txt").write_text("other\n"), "negative prompts"),
    "unet": (lambda folder: change_file(folder / "t/unet", "diffusion_pytorch_model.safetensors"), "teacher's unet"),
    "heads": (lambda folder: change_json(folder / "t/unet/config.json", attention_head_dim=4), "teacher's unet"),
    "betas": (
        lambda folder: change_json(folder / "t/scheduler/scheduler_config.json", beta_end=0.02),
        "noise schedule",
    ),
    "prediction": (
        lambda folder: change_json(folder / "t/scheduler/scheduler_config.json", prediction_type="v_prediction"),
        "noise schedule",
    ),
    "text encoder": (lambda folder: change_file(folder / "t/text_encoder", "model.safetensors"), "text encoder"),
    "CLIP": (lambda folder: change_file(folder / "clip", "model.safetensors"), "CLIP (clip.model)"),
    "decoder": (lambda folder: change_file(folder / "t/vae", "diffusion_pytorch_model.safetensors"), "decoder"),
    "origin": (lambda folder: change_file(folder / "s/unet", "diffusion_pytorch_model.safetensors"), "starts from"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(teacher, clip, tmp_path_factory):
    """A run of one step with all that it can be made of in one folder."""
    folder = tmp_path_factory.mktemp("made")
    for source, name in ((teacher, "t"), (teacher, "s"), (clip, "clip")):
        shutil.copytree(source, folder / name)
    (folder / "prompts.txt").write_text("a red circle\na pet\n")
    (folder / "negatives.txt").write_text("blue\ngreen\n")
    settings = {
        "teacher": "t", "prompts": "prompts.txt", "output": "run", "device": "cpu", "batch_size": 2, "steps": 1,
        "lora": {"rank": 2}, "clip": {"model": "clip", "decoder": None, "one_in": 1},
        "nasa": {"prompts": "negatives.txt"}, "student": {"start_from": "s"}, "sample_every": 9,
        "sample_prompts": ["red"], "samples_per_prompt": 2,
    }  # fmt: skip
    before = Path.cwd()
    os.chdir(folder)
    try:
        distill(parse(settings))
    finally:
        os.chdir(before)
    return folder, settings


@pytest.mark.parametrize("change", CHANGES)
def test_changed_contents_under_the_same_name_are_refused_by_name(whole_run, tmp_path, monkeypatch, change):
    folder, settings = whole_run
    shutil.copytree(folder, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    alter, named = CHANGES[change]
    alter(tmp_path / "made")
    with pytest.raises(UserError, match="changed since then: ([^,]*). Put back what was there") as refused:
        distill(parse(settings | {"steps": 2}), resume=True)
    assert named in str(refused.value)
    assert load_newest(Path("run")).state["step"] == 1


def test_a_run_without_a_record_compares_the_settings(short, tmp_path):
    distill(parse(short))
    (tmp_path / "run" / contents.FILE).unlink()
    moved = str(shutil.copytree(short["teacher"], tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="teacher was .* and is .*elsewhere"):
        distill(parse(short | {"teacher": moved, "steps": 2}), resume=True)
    distill(parse(short | {"steps": 2}), resume=True)
    assert contents.is_recorded(tmp_path / "run")


@pytest.mark.parametrize("record", ["{", "[]", "5", '"x"'])
def test_a_broken_record_is_a_sentence(short, tmp_path, record):
    distill(parse(short))
    (tmp_path / "run" / contents.FILE).write_text(record)
    if record == "[]":  # an empty one: nothing is known
        distill(parse(short | {"steps": 2}), resume=True)
        return
    with pytest.raises(UserError, match="Cannot read .*made_of.json"):
        distill(parse(short | {"steps": 2}), resume=True)


def test_fewer_steps_than_there_are_is_a_sentence_and_as_many_is_nothing_to_do(short, tmp_path):
    last = distill(parse(short | {"steps": 3}))
    with pytest.raises(UserError, match="has come to step 3, and this config ends at 2; write more `steps`"):
        distill(parse(short | {"steps": 2}), resume=True)
    assert distill(parse(short | {"steps": 3}), resume=True) == last and last.is_dir()
    assert [folder.name for folder in newest_first(tmp_path / "run")] == ["step-00000003", "step-00000002"]


def test_a_run_of_no_steps_is_refused(short):
    with pytest.raises(UserError, match="steps is 0 and there is no warm start; nothing would be trained"):
        parse(short | {"steps": 0})


def test_newest_damaged_keep_one_resume_and_stop_loses_neither(short, tmp_path):
    """As it was reported: the just written and the last good one were gone while it said "all saved"."""
    distill(parse(short | {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 2}))
    newest = tmp_path / "run/checkpoints/step-00000003/student.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = short | {"steps": 9, "keep_checkpoints": 1, "checkpoint_every": 100}
    calls = []
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 3, all saved"):
        distill(parse(again), resume=True, stop=lambda: calls.append(0) or len(calls) == 1)
    assert load_newest(tmp_path / "run").state["step"] == 3
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(UserError, match="All 1 checkpoints of .*run are damaged"):
        distill(parse(again), resume=True)


def test_checkpoints_without_their_config_are_not_trained_over(short, tmp_path):
    distill(parse(short))
    (tmp_path / "run/config.yaml").unlink()
    for resume in (False, True):
        with pytest.raises(UserError, match="holds checkpoints but no config.yaml; put it back"):
            distill(parse(short), resume=resume)
