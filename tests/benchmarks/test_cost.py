"""The benchmark itself, on a tiny stand-in: its counts against FLOPs written out. Its times mean nothing."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.in_process import PACK

DEPTH, WIDTH, T5_WIDTH = 2, 96, 4096  # of the stand-in


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "new folder" / "nasa.json"
    options = ["--narrow", "--only", "pixart", "--rounds", "3", "--threads", "1", "--output", str(path)]
    return path, subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.nasa", *options],
        env={**os.environ, "PYTHONPATH": str(PACK / "tests")},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture
def cases(run):
    return json.loads(run[0].read_text())["cases"]


def test_flops_of_pixart(cases):
    for case in cases:
        tokens = case["tokens"][1]
        weighed = 0 if case["title"].endswith("nasa") else case["tokens"][0]  # auto weighs the prompt again
        attention = DEPTH * 4 * (case["pixels"] // 16) ** 2 * (tokens + weighed) * WIDTH
        text = 2 * tokens * (T5_WIDTH * WIDTH + WIDTH * WIDTH)  # y_embedder
        keys_values = DEPTH * 2 * tokens * WIDTH * 2 * WIDTH
        one, four = case["flops"], case["flops_4_steps"]
        assert four["plain"] == 4 * one["plain"]
        if tokens == 20:
            assert one["nasa"] - one["plain"] == attention
            assert one["nasa_first"] - one["nasa"] == text + keys_values
            assert four["nasa_first"] - one["nasa_first"] == 3 * one["nasa"]  # K- and V- are made once


def test_ratios(cases):
    for case in cases:
        assert 1 < case["flops"]["ratio"]["nasa"] < case["flops"]["ratio"]["nasa_first"]
        assert 1.5 < case["flops"]["ratio"]["cfg"] <= 2
        assert "peak_bytes" not in case or 1 < case["peak_bytes"]["ratio"]["nasa"] < 1.5


def test_report(run, cases):
    path, process = run
    report = json.loads(path.read_text())
    assert list(path.parent.iterdir()) == [path]
    assert report["machine"]["versions"]["torch"] and report["machine"]["comfyui"] and report["machine"]["date"]
    assert [len(case["seconds"]["rounds"]["nasa"]) for case in cases if "seconds" in case] == [3, 3]
    assert {bar["of"] for bar in report["bars"]} == {"flops", "peak_bytes", "seconds"}
    for case in cases:
        assert f"| {case['title']} |" in process.stdout


@pytest.mark.parametrize(
    "name, lengths", [("flux", 3), ("flux2", 2), ("sd35_large", 3), ("qwen_image", 2), ("z_image", 2)]
)
def test_joint_attention_costs_what_is_promised_by_every_rule(tmp_path, name, lengths):
    """A few blocks of full size, at 1024 px.

    With masses from the kernel, no rule needs a second attention over the picture; without, `difference` does.
    """
    output = tmp_path / "joint.json"
    subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.nasa", "--narrow", "--only", name, "--rounds", "0", "--threads", "1",
         "--output", str(output)],
        env={**os.environ, "PYTHONPATH": str(PACK / "tests")},
        check=True,
    )  # fmt: skip
    report = json.loads(output.read_text())
    *cases, asked = [(case["tokens"][1], case["flops"]["ratio"]["nasa"]) for case in report["cases"]]
    by_tokens = {tokens: {ratio for n, ratio in cases if n == tokens} for tokens, _ in cases}
    assert len(cases) == lengths + 2 and all(len(ratios) == 1 for ratios in by_tokens.values())
    ratios = [min(by_tokens[tokens]) for tokens in sorted(by_tokens)]
    assert 1 < ratios[0] < asked[1] and ratios == sorted(ratios)
    assert len(report["bars"]) >= lengths + 2 and all(bar["met"] for bar in report["bars"]), report["bars"]
