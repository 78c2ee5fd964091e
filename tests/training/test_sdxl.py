"""SDXL: the backbone against its network called by hand, single files, what is refused, and exported files in diffusers
and in a real ComfyUI, whose table of models gets one row for a narrow SDXL. Random weights: wiring only."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from small_models import make_sdxl
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from training.errors import UserError
from training.export import export
from training.export.stable_diffusion import unet_state
from training.export.stable_diffusion_xl import stable_diffusion_xl_checkpoint
from training.networks.adapter import adapter_state, add_adapter
from training.networks.backbones import load_backbone
from training.recipe.config import load, parse
from training.run.checkpoint import Checkpoint, save
from training.run.folder import write_config
from training.run.plan import GIB, plan, report

COMFYUI = Path(os.environ.get("COMFYUI_PATH", "none"))
needs_comfyui = pytest.mark.skipif(not (COMFYUI / "comfy/sd.py").exists(), reason="no ComfyUI here")
NARROW = """

class NarrowSDXL(SDXL):
    unet_config = SDXL.unet_config | {
        "model_channels": 64, "context_dim": 20, "adm_in_channels": 12 + 6 * 256, "transformer_depth": [0, 0, 2, 2]
    }


models.insert(0, NarrowSDXL)
"""
V = {"prediction_type": "v_prediction"}
ZERO = V | {"rescale_betas_zero_snr": True}


def test_sdxl_is_told_pooled_text_and_the_size_of_the_picture(sdxl):
    backbone = load_backbone("stable_diffusion_xl", str(sdxl))
    prompts = ["a red circle", "a pet"]
    text, x_t = backbone.encode(prompts), torch.randn((2, 4, 4, 6), generator=torch.Generator().manual_seed(1))
    eps = backbone.predict(backbone.network, x_t, torch.tensor([5, 400]), text)
    hidden = []
    for name, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        encoder = kind.from_pretrained(sdxl / f"text_encoder{name}")
        tokenizer = CLIPTokenizer.from_pretrained(sdxl / f"tokenizer{name}")
        ids = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        read = encoder(ids, output_hidden_states=True)
        hidden.append(read.hidden_states[-2])
    told = {"text_embeds": read.text_embeds, "time_ids": torch.tensor([[32.0, 48, 0, 0, 32, 48]] * 2)}
    unet = UNet2DConditionModel.from_pretrained(sdxl / "unet")
    wanted = unet(x_t, torch.tensor([5, 400]), torch.cat(hidden, -1), added_cond_kwargs=told).sample
    torch.testing.assert_close(eps, wanted, rtol=1e-5, atol=1e-6)
    assert text.embeddings.shape == (2, 77, 20) and text.pooled.shape == (2, 12)


def whole(folder: Path, factor: float = 0.7) -> tuple[dict, dict]:
    """A checkpoint with other weights than the folder's, and these."""
    backbone = load_backbone("stable_diffusion_xl", str(folder))
    states = [backbone.network, backbone.vae, *backbone.text_encoder.values()]
    states = [{key: value * 1.01 for key, value in part.state_dict().items() if value.is_floating_point()}
              for part in states]  # fmt: skip
    checkpoint = stable_diffusion_xl_checkpoint(*states, factor)
    return {key: value.contiguous() for key, value in checkpoint.items()}, dict(zip("nvlg", states, strict=True))


@pytest.mark.parametrize("marks, prediction, last", [((), "epsilon", 0.0682), (("v_pred",), "v_prediction", 0.0682),
                                                     (("v_pred", "ztsnr"), "v_prediction", 0.0)])  # fmt: skip
def test_a_community_checkpoint_brings_all_of_its_parts_and_says_what_it_predicts(
    sdxl, tmp_path, marks, prediction, last
):
    checkpoint, states = whole(sdxl)
    safetensors.torch.save_file(checkpoint | {mark: torch.zeros(0) for mark in marks}, tmp_path / "one.safetensors")
    read = load_backbone("stable_diffusion_xl", str(tmp_path / "one.safetensors"), parts=str(sdxl))
    assert read.prediction_type == prediction and read.alphas[-1].item() == pytest.approx(last, abs=1e-3)
    parts = {"n": read.network, "l": read.text_encoder["text_encoder"], "g": read.text_encoder["text_encoder_2"]}
    for name, part in parts.items():
        state = part.state_dict()
        assert all(torch.equal(state[key], value) for key, value in states[name].items()), name
    alone = {key.removeprefix("model.diffusion_model."): value for key, value in unet_state(states["n"]).items()}
    safetensors.torch.save_file(alone | {mark: torch.zeros(0) for mark in marks}, tmp_path / "unet.safetensors")
    read = load_backbone("stable_diffusion_xl", str(tmp_path / "unet.safetensors"), parts=str(sdxl))
    assert read.prediction_type == prediction
    assert all(torch.equal(value, states["n"][key]) for key, value in read.network.state_dict().items())


def test_what_is_no_sdxl_to_train_is_one_sentence(sdxl, teacher, tmp_path):
    def refuses(sentence: str, source: Path, kind: str = "stable_diffusion_xl", parts: Path | None = None) -> None:
        with pytest.raises(UserError, match=sentence):
            load_backbone(kind, str(source), parts=str(parts) if parts else None)

    def single(name: str, **tensors) -> Path:
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file({key.replace("__", "."): torch.zeros(size) for key, size in tensors.items()}, path)
        return path

    first = "model__diffusion_model__input_blocks__0__0__weight"
    label = "model__diffusion_model__label_emb__0__0__weight"
    refuses("is an SDXL, .*set `backbone: stable_diffusion_xl`", sdxl, "stable_diffusion")
    xl = single("xl", **{first: (32, 4, 3, 3), label: (8, 36)})
    refuses("is an SDXL, .*set `backbone: stable_diffusion_xl`", xl, "stable_diffusion", teacher)
    refuses("is no SDXL, .*set `backbone: stable_diffusion`", teacher)
    refuses("is no SDXL, .*set `backbone: stable_diffusion`", single("sd", **{first: (32, 4, 3, 3)}), parts=sdxl)
    refiner = {"cross_attention_dim": 12, "projection_class_embeddings_input_dim": 12 + 5 * 4}
    refuses("is SDXL's refiner, .*give the base", make_sdxl(tmp_path / "refiner", **refiner))
    attention = "model__diffusion_model__input_blocks__4__1__transformer_blocks__0__attn2__to_k__weight"
    refuses("is SDXL's refiner", single("r", **{first: (32, 4, 3, 3), label: (8, 32), attention: (8, 12)}), parts=sdxl)
    for channels, what in ((9, "inpainting"), (8, "editing")):
        refuses(f"reads {channels} channels .*{what}", make_sdxl(tmp_path / what, in_channels=channels))
        odd = single(what, **{first: (32, channels, 3, 3), label: (8, 36)})
        refuses(f"reads {channels} channels .*{what}", odd, parts=sdxl)
    odd = single("sd-inpainting", **{first: (32, 9, 3, 3)})
    refuses("reads 9 channels .*inpainting", odd, "stable_diffusion", teacher)
    for name in ("lora_unet_x.lora_down.weight", "unet.x.lora_A.weight", "lora_unet_x.lokr_w1", "lora_te1_x.hada_w1_a"):
        refuses("is a LoRA, which only patches", single("lora", **{name: (4, 4)}), parts=sdxl)
    folder = tmp_path / "lora"
    folder.mkdir()
    shutil.copy(tmp_path / "lora.safetensors", folder / "pytorch_lora_weights.safetensors")
    refuses("is a LoRA, which only patches", folder)
    refuses("was trained by EDM", single("edm", **{first: (32, 4, 3, 3), label: (8, 36), "edm_mean": 4}), parts=sdxl)


@pytest.fixture(scope="module")
def narrow_comfyui(tmp_path_factory):
    """The real ComfyUI with one row more in its table of models, and its CLIPs as narrow as the teacher's."""
    root = tmp_path_factory.mktemp("comfyui")
    for path in COMFYUI.iterdir():
        if path.name != "comfy" and not path.name.startswith("."):
            (root / path.name).symlink_to(path.resolve())
    shutil.copytree(COMFYUI / "comfy", root / "comfy", ignore=shutil.ignore_patterns("__pycache__"))
    with (root / "comfy/supported_models.py").open("a") as table:
        table.write(NARROW)
    for name, width in (("sd1_clip_config.json", 8), ("clip_config_bigg.json", 12)):
        config = json.loads((root / "comfy" / name).read_text())
        narrow = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        narrow |= {"num_hidden_layers": 3, "num_attention_heads": 2, "eos_token_id": 79}
        (root / "comfy" / name).write_text(json.dumps(config | narrow))
    for name in ("sd1_clip.py", "sdxl_clip.py"):  # where a prompt ends, for its pooled vector
        path = root / "comfy" / name
        path.write_text(path.read_text().replace("49407", "79"))
    return root


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return make_sdxl(tmp_path_factory.mktemp("narrow"), width=64, sizes=256)


@needs_comfyui
@pytest.mark.parametrize("lora, layout, schedule", [
    (True, "lora", {}), (True, "lora", ZERO), (True, "unet", V), (False, "unet", ZERO), (False, "checkpoint", {}),
    (False, "checkpoint", ZERO),
])  # fmt: skip
def test_an_exported_sdxl_is_what_diffusers_and_comfyui_make_of_it(
    narrow, narrow_comfyui, warm_comfyui, tmp_path, monkeypatch, lora, layout, schedule
):
    monkeypatch.setenv("COMFYUI_PATH", str(narrow_comfyui))
    monkeypatch.setenv("COMFYUI_PYTHON", warm_comfyui(narrow_comfyui))
    teacher = shutil.copytree(narrow, tmp_path / "teacher")
    path = teacher / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | schedule))
    student = {"student": {"lora": {"rank": 4, "alpha": 8}}} if lora else {}
    start = {"timestep": 399, "noise": "vp"}
    paths = {"teacher": str(teacher), "prompts": "p.txt", "output": str(tmp_path / "run")}
    config = parse({"backbone": "stable_diffusion_xl", "start": start} | paths | student)
    write_config(tmp_path / "run", config)
    network = load_backbone("stable_diffusion_xl", str(teacher)).network
    state = {name: weight * 1.01 for name, weight in network.state_dict().items()}
    if lora:
        torch.manual_seed(1)
        state = adapter_state(add_adapter(network, config.student.lora))
        state = {name: 0.05 * torch.randn_like(weight) for name, weight in state.items()}
    save(tmp_path / "run", Checkpoint({"student": state}, {}, {"step": 5, "bad_steps": 0}), 1)
    lines = []
    assert export(tmp_path / "run", tmp_path / "s.safetensors", layout=layout, tell=lines.append) < 1e-4
    told = "\n".join(lines)
    print(told)
    assert f"as NarrowSDXL, {'v_prediction' if schedule else 'epsilon'}, latents times 0.13025" in told
    for figure in told.split("differences: ")[1].split(".\n")[0].rstrip(".").split(", "):
        name, value = figure.rsplit(" ", 1)
        assert float(value) < {"decoded picture": 4e-4}.get(name, 1e-4), figure
    with safetensors.safe_open(tmp_path / "s.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"].startswith("stable-diffusion-xl-v1-base")
        assert file.metadata()["snoopi.start_timestep"] == "399"


def test_the_shipped_sdxl_trains_a_lora_within_24_gb():
    config = load("training/configs/sdxl.yaml")
    planned = plan(config)
    assert config.student.lora and planned.parameters["denoiser"] == pytest.approx(2567.5e6, rel=1e-3)
    assert sum(planned.memory.values()) / GIB < 24
    lines = report(config).splitlines()
    assert any(line.startswith("a card of 24 GB:") and line.endswith(" fits") for line in lines)
    whole_weights = config.model_copy(update={"student": config.student.model_copy(update={"lora": None})})
    assert any(
        "a card of 24 GB:" in line and "does not fit; set" in line for line in report(whole_weights).splitlines()
    )
