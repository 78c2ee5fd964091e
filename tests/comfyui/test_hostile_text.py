"""Texts that a console cannot print, in a running server: one sentence, and the worker lives."""

import os

import pytest

from comfyui import workflow
from comfyui.client import Refused
from comfyui.serve import PACK, serve

LOADER = "06 Auto finds the model"
PATCH = "91 Demo model, with and without"
SURROGATE, EMOJI, UNPRINTABLE = "\ud800 \udcff", "\N{CAT FACE} 猫", "\0\n\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}"
TEXTS = {"surrogate": SURROGATE, "emoji": EMOJI, "control": UNPRINTABLE, "long": EMOJI * 20_000}
FILES = {"emoji": "\N{CAT FACE}.safetensors", "not UTF-8": "\udcff\udcfe.safetensors", "pickle": "\udcff.ckpt"}


@pytest.fixture(scope="module")
def windows_server(tmp_path_factory, untrained_checkpoint):
    """A server whose console is cp1252, as that of many Windows machines, with files of names it cannot print."""
    base = tmp_path_factory.mktemp("cp1252")
    folder = base / "models" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("sd_turbo.safetensors", "snoopi-shapes.safetensors"):  # of the two graphs
        (folder / name).symlink_to(untrained_checkpoint)
    for name in FILES.values():
        (folder / name).write_bytes(b"not a model" * 100)
    (base / "user").mkdir()
    row = f"{EMOJI}: {{timesteps: [9], prediction: {EMOJI}}}"
    (base / "user" / "snoopi_presets.yaml").write_text(row, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "cp1252")
        patch.setenv("PYTHONUTF8", "0")
        with serve(base) as client:
            yield client


@pytest.fixture(params=["server", "windows_server"])
def any_server(request):
    return request.getfixturevalue(request.param)


def graph(server, name):
    return workflow.load(PACK / "workflows" / f"{name}.json", server.object_info())


def refusal(server, prompt):
    with pytest.raises(Refused) as refused:
        server.run(prompt, timeout=60)
    return str(refused.value)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_b11_a_text_that_cannot_be_printed_is_one_sentence(any_server, text):
    """In every input that takes a text; the prompt after them runs."""
    loader, patch = graph(any_server, LOADER), graph(any_server, PATCH)
    bad = [
        workflow.with_values(loader, SNOOPICheckpointLoader={"model_name": f"checkpoints/{text}"}),
        workflow.with_values(loader, SNOOPICheckpointLoader={"preset": text}),
        workflow.with_values(loader, SNOOPIOneStepSampler={"preset": text}),
        workflow.with_values(patch, NASACrossAttentionPatch={"blocks": text}),
    ]
    for prompt in bad:
        if "Value not in list" not in (sentence := refusal(any_server, prompt)):  # newer ComfyUI's own, which lives too
            assert len(sentence) < 640 and sentence.isprintable()
    good = {"seed": len(text), "preset": "snoopi-shapes"}
    assert any_server.run(workflow.with_values(patch, SNOOPIOneStepSampler=good), timeout=60).pictures


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_b11_a_file_whose_name_cannot_be_printed(windows_server, file):
    loader = graph(windows_server, LOADER)
    name = {"model_name": f"checkpoints/{file}"}
    sentence = refusal(windows_server, workflow.with_values(loader, SNOOPICheckpointLoader=name))
    assert "so it is not loaded" in sentence or "is corrupt or incomplete: download it again." in sentence
    assert sentence.isascii()


def test_b11_a_table_that_cannot_be_printed(windows_server):
    """The user's table holds an emoji where an error quotes it."""
    loader = graph(windows_server, LOADER)
    sentence = refusal(windows_server, loader)
    text = EMOJI.encode("unicode_escape").decode()
    assert f"snoopi_presets.yaml, line 1, row {text}, field prediction: '{text}' is not one of" in sentence
    preset = {"preset": "snoopi-shapes"}
    named = workflow.with_values(loader, SNOOPICheckpointLoader=preset, SNOOPIOneStepSampler=preset)
    assert windows_server.run(named, timeout=60).pictures  # the pack's own run all the same
