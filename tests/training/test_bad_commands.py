"""Every command of the trainer on bad input: exit code 2, one sentence that names the thing, no traceback.

A table a kind; the command line itself runs, in this process. Small random models.
"""

# ruff: noqa: E501

import json
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors
import safetensors.torch
import torch
import yaml
from diffusers import UNet2DConditionModel

from training.__main__ import main
from training.distill import distill
from training.recipe.config import parse

SCHEDULER, WEIGHTS = "scheduler/scheduler_config.json", "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def off_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def here(tmp_path, monkeypatch, teacher, clip) -> Path:
    """The working folder: a teacher `t`, prompts.txt, c.yaml with a run of one step."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "t")
    Path("clip").symlink_to(clip)
    Path("prompts.txt").write_text("a red circle\nblue\n")
    write_config()
    return tmp_path


def write_config(**changes) -> dict:
    settings = {
        "teacher": "t", "prompts": "prompts.txt", "output": "run", "device": "cpu", "batch_size": 2, "steps": 1,
        "lora": {"rank": 2, "alpha": 2}, "sample_prompts": ["red"], "samples_per_prompt": 2, "sample_every": 9,
    } | changes  # fmt: skip
    Path("c.yaml").write_text(yaml.safe_dump(settings))
    return settings


def refused(capsys, *arguments: str) -> str:
    """Runs the command line, which must refuse; returns its sentence."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse
        code = left.code
    told = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and told, (code, told)
    sentence = told[-1]
    assert (
        "error: " in sentence and len(sentence) <= 650 and sentence.isprintable() and "Traceback" not in "".join(told)
    )
    return sentence


def change_json(path: str, **values) -> None:
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | values))


def change_weights(path: str, change) -> None:
    tensors = safetensors.torch.load_file(path)
    change(tensors, sorted(tensors))
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def to_pickles(folder: str, name: str) -> None:
    for file in Path(folder).glob("*.safetensors"):
        file.unlink()
    torch.save({"a": 1}, Path(folder) / name)


def truncate(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def remake_unet(**options) -> None:
    """A UNet of another kind, with all the weights that it wants."""
    shutil.rmtree("t/unet")
    size = {"sample_size": 4, "block_out_channels": (32,), "layers_per_block": 1, "cross_attention_dim": 32}
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    UNet2DConditionModel(**size, **kinds, attention_head_dim=8, norm_num_groups=8, **options).save_pretrained("t/unet")


def scheduler(**values):
    return lambda: change_json(SCHEDULER_PATH, **values)


def unet(**values):
    return lambda: change_json("t/unet/config.json", **values)


def weights(part: str, change):
    name = "model.safetensors" if part == "text_encoder" else WEIGHTS
    return lambda: change_weights(f"t/{part}/{name}", change)


def lose_one(tensors, names):
    del tensors[names[0]]


def put_nan(tensors, names):
    tensors[names[3]].view(-1)[0] = float("nan")


def put_infinity(tensors, names):
    tensors[names[3]].view(-1)[0] = float("inf")


def another_shape(tensors, names):
    tensors[next(name for name in names if tensors[name].ndim > 1)] = torch.zeros(3, 3)


SCHEDULER_PATH = "t/" + SCHEDULER
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}
TEACHERS = {
    # what it cannot follow
    "flow matching": (scheduler(_class_name="FlowMatchEulerDiscreteScheduler"), "scheduler FlowMatchEuler.*of betas"),
    "EDM": (scheduler(_class_name="EDMEulerScheduler"), "has the scheduler EDMEulerScheduler"),
    "rectified flow": (scheduler(_class_name="FlowMatchHeunDiscreteScheduler"), "needs a schedule of betas"),
    "flow sigmas": (scheduler(use_flow_sigmas=True), "DDIMScheduler with flow sigmas"),
    "predicts x0": (scheduler(prediction_type="sample"), "predicts sample; PG-SB needs"),
    "predicts flow": (scheduler(prediction_type="flow_prediction"), "predicts flow_prediction"),
    "predicts a number": (scheduler(prediction_type=5), "predicts 5"),
    "NaN betas": (scheduler(beta_start=float("nan")), "make no noise schedule"),
    "negative betas": (scheduler(beta_start=-1.0), "make no noise schedule|cannot be read"),
    "betas of words": (scheduler(beta_start="abc"), "cannot be read"),
    "no betas": (lambda: Path(SCHEDULER_PATH).write_text('{"_class_name": "DDIMScheduler"}'), "names no betas"),
    "betas of an empty list": (scheduler(trained_betas=[]), "make no noise schedule"),
    "unknown betas": (scheduler(beta_schedule="zigzag"), "zigzag is not implemented"),
    "too many timesteps": (scheduler(num_train_timesteps=10**12), "num_train_timesteps 1000000000000"),
    "timesteps of words": (scheduler(num_train_timesteps="x"), "num_train_timesteps 'x'"),
    "few timesteps": (scheduler(num_train_timesteps=500), "start.timestep goes to 999; .* ends at 499"),
    "scheduler is a list": (lambda: Path(SCHEDULER_PATH).write_text("[]"), "no JSON object"),
    "scheduler is binary": (lambda: Path(SCHEDULER_PATH).write_bytes(b"\xff\0"), "Cannot load scheduler"),
    # what it cannot ask
    "inpainting": (lambda: remake_unet(in_channels=9), "reads 9 channels and writes 4: a model for inpainting"),
    "SDXL": (lambda: remake_unet(**SDXL), "is an SDXL.*set `backbone: stable_diffusion_xl`"),
    "classes": (lambda: remake_unet(num_class_embeds=3), "also wants a class"),
    "LCM": (lambda: remake_unet(time_cond_proj_dim=8), "distilled by guidance already"),
    "image embeddings": (unet(encoder_hid_dim_type="image_proj"), "also wants embedded pictures"),
    "another network": (unet(_class_name="FluxTransformer2DModel"), "is a FluxTransformer2DModel"),
    "no heads": (unet(attention_head_dim=0), "Cannot load unet"),
    "unknown blocks": (unet(down_block_types=["X"]), "Cannot load unet.*X does not exist"),
    "no size": (unet(sample_size=None), "names no size .*set `latent_size`"),
    "a size of words": (unet(sample_size="x"), "names no size"),
    "unet is a list": (lambda: Path("t/unet/config.json").write_text("[]"), "no JSON object"),
    # weights
    "a weight lost, unet": (weights("unet", lose_one), "1 of its weights are missing, such as conv_in.bias"),
    "a weight lost, text": (weights("text_encoder", lose_one), "Cannot load text_encoder .*1 of its weights are missing"),
    "a weight lost, vae": (weights("vae", lose_one), "Cannot load vae .*1 of its weights are missing"),
    "NaN, unet": (weights("unet", put_nan), "Cannot use unet .*holds NaN or infinite"),
    "NaN, text": (weights("text_encoder", put_nan), "Cannot use text_encoder .*holds NaN or infinite"),
    "infinite, vae": (weights("vae", put_infinity), "Cannot use vae .*holds NaN or infinite"),
    "another shape, unet": (weights("unet", another_shape), "config.json and its weights are no pair"),
    "another shape, text": (weights("text_encoder", another_shape), "config.json and its weights are no pair"),
    "cut short": (lambda: truncate("t/text_encoder/model.safetensors"), "Cannot load text_encoder .*copy it again"),
    "a pickle, unet": (lambda: to_pickles("t/unet", "diffusion_pytorch_model.bin"), "is a pickle, which is not read"),
    "a pickle, text": (lambda: to_pickles("t/text_encoder", "pytorch_model.bin"), "is a pickle, which is not read"),
    # the other parts
    "an empty tokenizer": (lambda: [file.unlink() for file in Path("t/tokenizer").iterdir()], "reads every prompt alike"),
    "a broken tokenizer": (lambda: [file.write_text("{") for file in Path("t/tokenizer").iterdir()], "Cannot load tok"),
    "another autoencoder": (lambda: change_json("t/vae/config.json", _class_name="AutoencoderKLWan"), "must be one of"),
    "a scale of 0": (lambda: change_json("t/vae/config.json", scaling_factor=0), "scaling_factor 0"),
    "a scale of words": (lambda: change_json("t/vae/config.json", scaling_factor="x"), "scaling_factor 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", TEACHERS)
def test_a_teacher_that_cannot_be_trained_is_refused(here, capsys, fault):
    damage, told = TEACHERS[fault]
    damage()
    pytest.importorskip("re")
    import re

    assert re.search(told, sentence := refused(capsys, "distill", "c.yaml")), sentence
    assert not Path("run").exists()


SINGLE = {
    "off line": ({"conv_in.weight": 1}, {}, "is a single file; .*come from stable-diffusion-v1-5.*set `teacher_parts`"),
    "of another model": ({"conv_in.weight": 1}, {"teacher_parts": "t"}, "does not fit .*set `teacher_parts`"),
    "a few tensors": (
        {"model.diffusion_model.input_blocks.0.0.weight": 1},
        {"teacher_parts": "t"},
        "does not fit .*set `teacher_parts`",
    ),
    "an SDXL": (
        {"model.diffusion_model.input_blocks.0.0.weight": 1, "model.diffusion_model.label_emb.0.0.weight": 1},
        {"teacher_parts": "t"},
        "is an SDXL",
    ),
    "no UNet": ({"lora_unet_x.lora_up.weight": 1}, {"teacher_parts": "t"}, "is a LoRA, which only patches a model"),
}


@pytest.mark.parametrize("fault", SINGLE)
def test_a_single_file_that_is_no_teacher(here, capsys, fault):
    tensors, settings, told = SINGLE[fault]
    safetensors.torch.save_file({name: torch.zeros(size) for name, size in tensors.items()}, "one.safetensors")
    write_config(teacher="one.safetensors", **settings)
    matches(told, refused(capsys, "distill", "c.yaml"))


def matches(told: str, sentence: str) -> None:
    import re

    assert re.search(told, sentence), sentence


def broken_clip(change) -> dict:
    shutil.copytree("clip", "bad-clip")
    change(Path("bad-clip"))
    return {"clip": {"model": "bad-clip", "decoder": None, "one_in": 1}}


def run_code(folder: Path) -> None:
    """A tokenizer whose class is in the folder: never run, never asked about."""
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SETTINGS = {
    "clip cut short": (lambda: broken_clip(lambda f: truncate(f / "model.safetensors")), "Cannot load clip.model"),
    "clip pickled": (lambda: broken_clip(lambda f: to_pickles(f, "pytorch_model.bin")), "pytorch_model.bin is a pickle"),
    "clip with code": (lambda: broken_clip(run_code), "clip.model|tokenizer of bad-clip"),
    "clip of another kind": (lambda: {"clip": {"model": "t/unet", "decoder": None, "one_in": 1}}, "Cannot load clip.model"),
    "clip nowhere": (lambda: {"clip": {"model": "no/model", "one_in": 1}}, "Cannot load clip.model no/model: no such"),
    "decoder of another kind": (lambda: {"clip": {"model": "clip", "decoder": "t/unet", "one_in": 1}}, "clip.decoder"),
    "prompts nowhere": (lambda: {"prompts": "none.txt"}, "Cannot read the prompt file none.txt"),
    "prompts a folder": (lambda: {"prompts": os.mkdir("d.txt") or "d.txt"}, "Cannot read the prompt file d.txt"),
    "negatives nowhere": (lambda: {"nasa": {"prompts": "none.txt"}}, "Cannot read the prompt file none.txt"),
    "teacher nowhere": (lambda: {"teacher": "./none"}, "There is no teacher ./none"),
    "teacher of another backbone": (lambda: {"backbone": "pixart"}, "no folder transformer/ .it has .*unet"),
    "start nowhere": (lambda: {"student": {"start_from": "none.safetensors"}}, "There is no teacher none"),
    "no such backbone": (lambda: {"backbone": "flux"}, "backbone is 'flux'"),
    "no steps": (lambda: {"steps": 0}, "nothing would be trained"),
    "too many pictures": (lambda: {"sample_prompts": ["x"] * 600}, "1200 pictures; a grid holds 1024"),
    "no targets": (lambda: {"lora": {"targets": ["nope"]}}, "no layer ends in `nope`"),
    "output a file": (lambda: {"output": "prompts.txt"}, "Cannot write to .*prompts.txt"),
    "output below a file": (lambda: {"output": "prompts.txt/run"}, "Cannot write to .*prompts.txt"),
    "output too long": (lambda: {"output": "x" * 5000}, "File name too long"),
    "output NUL": (lambda: {"output": "a\0b"}, r"output is 'a\\x00b'"),
    "null prompt half a letter": (lambda: {"null_prompt": "\ud800"}, "null_prompt is"),
    "no encoded prompts": (lambda: {"encoded_prompts": "none"}, "none holds no encoded prompts"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SETTINGS)
def test_a_setting_that_names_nothing_good_is_refused(here, capsys, fault):
    changes, told = SETTINGS[fault]
    write_config(**changes())
    matches(told, refused(capsys, "distill", "c.yaml"))
    assert not Path("run/checkpoints").exists()


@pytest.fixture(scope="module")
def trained(teacher, tmp_path_factory):
    """A folder with a run of two steps and what it was made of."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        shutil.copytree(teacher, "t")
        Path("prompts.txt").write_text("a red circle\nblue\n")
        distill(parse(write_config(steps=2, checkpoint_every=1)))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def after_a_run(trained, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


PICTURE = ("sample", "run", "--output", "g.png", "--prompt", "red")
COMMANDS = {
    "seed too large": ((*PICTURE, "--seed", 2**70), f"--seed: {2**70} is not a whole number from 0"),
    "seed below 0": ((*PICTURE, "--seed", "-1"), "--seed: -1 is not"),
    "steps beyond the schedule": ((*PICTURE, "--steps", "4000"), "--steps is 4000; this model has 1000"),
    "no steps": ((*PICTURE, "--steps", "0"), "--steps: 0 is not a whole number above 0"),
    "guidance NaN": ((*PICTURE, "--guidance", "nan"), "--guidance: nan is not a number from 0 to 100"),
    "guidance infinite": ((*PICTURE, "--guidance", "inf"), "--guidance: inf is not"),
    "guidance below 0": ((*PICTURE, "--guidance=-1"), "--guidance: -1 is not"),
    "too many pictures": ((*PICTURE, "--count", "2000"), "2000 pictures, more than the 1024"),
    "a huge count": ((*PICTURE, "--count", 10**30), "--count"),
    "timestep beyond": ((*PICTURE, "--timestep", "1000"), "--timestep is 1000; allowed is 1 to 999"),
    "timestep 0": ((*PICTURE, "--timestep", "0"), "--timestep is 0"),
    "noise of another colour": ((*PICTURE, "--noise", "pink"), "invalid choice: 'pink'"),
    "long choice": ((*PICTURE, "--noise", "p" * 10**5), "invalid choice: 'ppp"),
    "no prompt": (("sample", "run", "--output", "g.png"), "No prompt; give --prompt"),
    "prompt too long": (("sample", "run", "--output", "g.png", "--prompt", "x" * 10**5), "the prompt has 100000"),
    "prompt half a letter": (("sample", "run", "--output", "g.png", "--prompt", "\udcff"), "lone surrogate"),
    "prompts nowhere": (("sample", "run", "--output", "g.png", "--prompts", "none.txt"), "Cannot read the prompt file"),
    "picture is a folder": (("sample", "run", "--output", "t", "--prompt", "red"), "--output is t, a folder"),
    "picture below a file": (("sample", "run", "--output", "prompts.txt/g.png", "--prompt", "x"), "Cannot write to"),
    "model nowhere": (("sample", "none/x/y", "--output", "g.png", "--prompt", "red"), "There is no teacher none/x/y"),
    "model damaged": (("sample", "cut.safetensors", "--output", "g.png", "--prompt", "red"), "Cannot read cut"),
    "model of no name": (("sample", "\udcff", "--output", "g.png", "--prompt", "red"), r"no teacher \\udcff"),
    "run nowhere": (("export", "none", "--output", "o.safetensors"), "none is no run"),
    "no such checkpoint": (("export", "run/checkpoints/step-00000009", "--output", "o.safetensors"), "is damaged"),
    "export elsewhere": (("export", "run", "--output", "o.ckpt"), "must end in .safetensors"),
    "export onto a folder": (("export", "run", "--output", "d.safetensors"), "d.safetensors, a folder"),
    "export below a file": (("export", "run", "--output", "prompts.txt/o.safetensors"), "Cannot write to"),
    "export as a LoRA": (("export", "run", "--output", "o.safetensors", "--format", "lora"), "is whole weights"),
    "title half a letter": (("export", "run", "--output", "o.safetensors", "--title", "\udcff"), "--title is"),
    "title too long": (("export", "run", "--output", "o.safetensors", "--title", "x" * 10**5), "at most 1000"),
    "licence NUL": (("export", "run", "--output", "o.safetensors", "--licence", "a\0b"), "--licence is"),
    "inspect nothing": (("inspect", "none"), "There is nothing at none"),
    "inspect no model": (("inspect", "prompts.txt"), "is no model file"),
    "inspect a cut file": (("inspect", "cut.safetensors"), "cut short or damaged"),
    "inspect a loop": (("inspect", "loop"), "loop"),
    "inspect a long name": (("inspect", "x" * 10**4), "xxx"),
    "processes that do not divide": (("distill", "c.yaml", "--dry-run", "--processes", "3"), "3 processes share it"),
    "no process": (("distill", "c.yaml", "--dry-run", "--processes", "0"), "--processes: 0 is not"),
    "config nowhere": (("distill", "none.yaml"), "Cannot read the config none.yaml"),
    "again": (("distill", "c.yaml"), "already holds a run; add --resume"),
    "nothing to encode into": (("encode", "c.yaml"), "encoded_prompts is not set"),
    "encode onto a file": (("encode", "c.yaml", "--output", "prompts.txt"), "Cannot write to prompts.txt"),
    "no such command": (("train",), "invalid choice: 'train'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", COMMANDS)
def test_a_command_that_cannot_be_done_is_one_sentence_and_loses_nothing(after_a_run, capsys, fault):
    Path("cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    Path("d.safetensors").mkdir()
    Path("loop").symlink_to("loop")
    before = written(after_a_run)
    arguments, told = COMMANDS[fault]
    matches(told, refused(capsys, *arguments))
    assert written(after_a_run) == before


def written(folder: Path) -> dict[Path, int]:
    """When each file below was written last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", 2**63 - 1),
        ("--steps", "1000", "--count", "1"),
        ("--steps", "7", "--guidance", "0"),
        ("--prompt", "x " * 4990),
        ("--prompt", "two\nlines\tof\r\x1b[31m text"),
        ("--prompt", ""),
        ("--prompt", "\U0001f600 \u4e2d\u6587"),
    ],
    ids=lambda arguments: arguments[0][2:] + str(len(str(arguments[1]))),
)
def test_odd_but_right_samples_are_drawn(after_a_run, capsys, arguments):
    assert main([str(argument) for argument in (*PICTURE, "--count", "2", *arguments)]) == 0
    assert Path("g.png").stat().st_size > 100


METADATA = {
    "timestep of words": ({"snoopi.start_timestep": "abc"}, "snoopi.start_timestep is 'abc'"),
    "timestep 0": ({"snoopi.start_timestep": "0"}, "snoopi.start_timestep is '0'"),
    "timestep of 5000 digits": ({"snoopi.start_timestep": "9" * 5000}, "snoopi.start_timestep is"),
    "noise": ({"snoopi.start_noise": "pink"}, "snoopi.start_noise is 'pink'"),
    "backbone": ({"snoopi.backbone": "../../etc"}, "backbone is '../../etc'"),
    "base": ({"snoopi.base_model": "\x1b[31m/home/me"}, r"was made from `\\x1b"),
}


@pytest.mark.parametrize("fault", METADATA)
def test_metadata_that_says_nonsense_is_a_sentence(after_a_run, capsys, fault):
    changes, told = METADATA[fault]
    unet = UNet2DConditionModel.from_pretrained("t/unet").state_dict()
    good = {"snoopi.start_timestep": "999", "snoopi.start_noise": "unit", "snoopi.backbone": "stable_diffusion"}
    safetensors.torch.save_file(unet, "m.safetensors", good | changes)
    teacher = () if "snoopi.base_model" in changes else ("--teacher", "t")
    matches(told, refused(capsys, "sample", "m.safetensors", "--output", "g.png", "--prompt", "red", *teacher))


def test_a_file_that_answers_nan_draws_no_grey_picture(after_a_run, capsys):
    unet = UNet2DConditionModel.from_pretrained("t/unet").state_dict()
    unet["conv_out.bias"] = torch.full((4,), 3e38)  # finite itself
    safetensors.torch.save_file(unet, "m.safetensors")
    told = refused(capsys, "sample", "m.safetensors", "--output", "g.png", "--prompt", "red", "--teacher", "t")
    assert "answers NaN or infinite" in told and not Path("g.png").exists()


@pytest.mark.parametrize(
    "content",
    [
        b'{"step": 1, "lo',
        b"\xff\xfe\0\n",
        b'[]\n5\n"x"\n{}\n{"step": "a"}\n{"step": true}\n',
        b"[" * 100_000 + b"\n",
        b'{"step": 1}\nbroken\n{"step": 2}\n',
    ],
    ids=["cut", "binary", "odd", "deep", "middle"],
)
def test_broken_lines_of_metrics_are_left_out(after_a_run, capsys, content):
    Path("run/metrics.jsonl").write_bytes(content)
    write_config(steps=3, log_every=1)
    assert main(["distill", "c.yaml", "--resume"]) == 0
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == ([1, 2, 3] if content.startswith(b'{"step": 1}') else [3])
    told = capsys.readouterr().err
    assert ("metrics.jsonl: 1 broken lines, as line 2, are left out" in told) == (len(steps) == 3)


def test_the_environment_does_not_divide_gradients(here, monkeypatch):
    """`accelerate launch --gradient_accumulation_steps` is an environment variable; micro_batch is what there is."""
    distill(parse(write_config(output="plain")))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    distill(parse(write_config(output="again")))
    norms = [json.loads(Path(run, "metrics.jsonl").read_text())["lora_grad_norm"] for run in ("plain", "again")]
    assert norms[0] == norms[1] > 0


def test_bitsandbytes_is_quiet_at_the_start():
    import subprocess
    import sys

    code = "import training.networks.adapter, sys; assert 'bitsandbytes' in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stderr == done.stdout == ""
