"""`make demo` in small: few seeds, the whole path; and what it says when its files are not as they should be."""

import fcntl
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from comfyui import workflow
from comfyui.serve import PACK, serve
from demo import report
from demo.graphs import METHODS, NASA_WORKFLOW
from demo.measure import Demo
from training.shapes.detector import read
from training.shapes.measurement import ALPHA, PAIRS, absent

REPORT_KEYS = {
    "comfyui_version", "alpha", "detector_accuracy", "teacher_accuracy", "student_accuracy", "student_colors", "pairs",
    "seconds_plain", "seconds_nasa", "settings", "machine", "versions",
}  # fmt: skip


def demo(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACK / "tests"), str(PACK)])}
    command = [sys.executable, "-m", "demo", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small demo with the committed model."""
    output = tmp_path_factory.mktemp("demo")
    made = demo("--output", output, "--seeds", 6, "--pictures", 32)
    assert made.returncode == 0, made.stderr
    return output, json.loads((output / "report.json").read_text()), made.stdout


def test_report(small):
    _, made, _ = small
    assert set(made) == REPORT_KEYS
    assert [(pair["prompt"], pair["negative"], pair["n"]) for pair in made["pairs"]] == [
        (pair.prompt, pair.negative, 6) for pair in PAIRS
    ]
    assert all(0 <= pair[method][what] <= 1 for pair in made["pairs"] for method in METHODS for what in pair[method])
    assert 0 < made["seconds_plain"] and 0 < made["seconds_nasa"]


def test_negative_prompts_work(small):
    """Loose bars, for few seeds; the real ones are in the table of `make demo`."""
    _, made, _ = small
    assert report.mean(made, "nasa", "absent") > report.mean(made, "none", "absent")
    assert report.mean(made, "nasa", "kept") > 0.8
    assert made["student_accuracy"] > 0.8


def test_pictures_and_table(small):
    output, made, printed = small
    for name in ("without_vs_with.png", "alpha_sweep.png", "attention_map.png"):
        with Image.open(output / name) as image:
            assert image.width > 1000 and image.height > 500
            assert json.loads(image.text["workflow"])["nodes"]  # opens as a graph where it is dropped on ComfyUI
    assert str(output / "without_vs_with.png") in printed
    assert all(name in printed for name, _, _ in report.bars(made))


def test_the_seed_of_the_demo_graph_shows_what_the_negative_does(small):
    """The graph as it is: the unwanted thing in at least three of four pictures without, in none with.

    And the attention map of its word lies on the shapes: brighter there than beside them.
    """
    output, _, _ = small
    with serve(output / "comfyui") as client:
        demo = Demo(client, ALPHA)
        pictures, masks = (demo.pictures(method, "a colored circle", "red", 32) for method in ("none", "mask"))
        graph = workflow.load(NASA_WORKFLOW, client.object_info())
        made = client.run(graph).pictures
    seen = {graph[node]["_meta"]["title"]: read(pictures[:, 4::8, 4::8]) for node, pictures in made.items()}
    (negative,) = (node["inputs"]["text"] for node in workflow.find(graph, "Negative prompt"))
    there = {title: [not absent(reading, negative) for reading in readings] for title, readings in seen.items()}
    assert sum(there["Without"]) >= 3 and not any(there["With the negative prompt"])

    paper = np.median(pictures.reshape(len(pictures), -1, 3), axis=1)[:, None, None]
    shapes = np.abs(pictures - paper).max(axis=-1) > 40
    assert 0.05 < shapes.mean() < 0.6
    on, beside = np.array([
        (mask[shape].mean(), mask[~shape].mean()) for mask, shape in zip(masks[..., 0], shapes, strict=True)
    ]).T  # fmt: skip
    print(f"red: {on.mean():.0f} on the shape, {beside.mean():.0f} beside it, {(on > beside).sum()} of {len(on)}")
    assert on.mean() > 1.1 * beside.mean() and (on > beside).mean() > 0.7


@pytest.mark.parametrize("damage", ["missing", "truncated", "not safetensors"])
def test_bad_checkpoint_is_one_sentence(tmp_path, untrained_checkpoint, damage):
    checkpoint = tmp_path / "model.safetensors"
    if damage != "missing":
        content = untrained_checkpoint.read_bytes()[:1_000_000] if damage == "truncated" else b"hello" * 100
        checkpoint.write_bytes(content)
    made = demo("--output", tmp_path / "out", "--checkpoint", checkpoint)
    assert made.returncode == 1
    assert str(checkpoint) in made.stderr and "makes it again" in made.stderr and "Traceback" not in made.stderr
    assert not (tmp_path / "out" / "report.json").exists()


def test_two_demos_do_not_share_a_folder(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = demo("--output", tmp_path)
    assert made.returncode == 1 and "Another demo is running" in made.stderr and "Traceback" not in made.stderr
    assert not (tmp_path / "report.json").exists()


def test_table_marks_what_is_not_met():
    shares = {"none": 0.5, "cfg": 0.5, "embedding": 0.5, "nasa": 0.9}
    pair = {"prompt": "a", "negative": "b", "n": 1, **{m: {"absent": s, "kept": 1.0} for m, s in shares.items()}}
    made = {
        "detector_accuracy": 1.0, "teacher_accuracy": 0.9, "student_accuracy": 1.0, "pairs": [pair],
        "student_colors": {"red": 0.5, "blue": 0.5}, "seconds_plain": 1.0, "seconds_nasa": 1.0,
    }  # fmt: skip
    missed = [name for name, _, met in report.bars(made) if not met]
    assert missed == ["teacher follows colour and shape: at least 95%", "with NASA absent: at least 95%"]
    assert report.table(made).count("NOT MET") == 2
