"""A student of several steps from the trainer to the picture: its export, our loader, the One-Step Sampler on `auto`.

Random weights: this proves the wiring, not quality. The trainer's own sampling is given the noise that ComfyUI draws.
"""

import json
import shutil
import sys
from pathlib import Path

import comfy.k_diffusion.sampling
import comfy.sample
import folder_paths
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "training"))
from small_models import make_sd3, make_teacher  # noqa: E402

from training.evaluate import sample  # noqa: E402
from training.export import export  # noqa: E402
from training.networks.text import Text  # noqa: E402
from training.recipe.config import parse  # noqa: E402
from training.run.checkpoint import Checkpoint, save  # noqa: E402
from training.run.folder import write_config  # noqa: E402

SEED = 5


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """As wide as ComfyUI wants SD 1.5 and SD 3, and no deeper than it must be."""
    from diffusers import SD3Transformer2DModel

    folder = tmp_path_factory.mktemp("teachers")
    make_teacher(folder / "eps", width=320, context=768)
    shutil.copytree(folder / "eps", folder / "v")
    scheduler = folder / "v/scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    make_sd3(folder / "flow")
    torch.manual_seed(0)
    size = {"num_layers": 1, "num_attention_heads": 1, "caption_projection_dim": 64, "qk_norm": "rms_norm"}
    SD3Transformer2DModel(sample_size=8, pos_embed_max_size=12, **size).save_pretrained(folder / "flow/transformer")
    return folder


CASES = {
    "eps": ({"timestep": 999, "noise": "unit", "steps": 4}, (999, 749, 499, 249)),
    "eps, its own list": ({"timestep": 625, "noise": "vp", "steps": 3, "later": [300, 100]}, (625, 300, 100)),
    "v": ({"timestep": 999, "noise": "unit", "steps": 2}, (999, 499)),
    "flow": ({"timestep": 720, "noise": "vp", "steps": 4}, (720, 540, 360, 180)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trained_student_of_several_steps_gives_in_comfyui_what_the_trainer_gives(
    sampling, run, teachers, tmp_path, monkeypatch, case
):
    start, timesteps = CASES[case]
    kind = case.split(",")[0]
    teacher, backbone = teachers / kind, "stable_diffusion3" if kind == "flow" else "stable_diffusion"
    values = {"teacher": str(teacher), "prompts": "p.txt", "output": str(tmp_path / "run"), "backbone": backbone}
    write_config(tmp_path / "run", parse(values | {"start": start}))
    network = sample.load_backbone(backbone, str(teacher)).network
    student = {key: 1.01 * weight for key, weight in network.state_dict().items()}
    save(tmp_path / "run", Checkpoint({"student": student}, {}, {"step": 1, "bad_steps": 0}), 1)
    path = tmp_path / "models" / "mine.safetensors"
    path.parent.mkdir()
    export(tmp_path / "run", path, layout="transformer" if kind == "flow" else "unet", check="diffusers")

    folder = ([str(path.parent)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", folder)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    model, _, _, info = sampling.checkpoint_loader_node.SNOOPICheckpointLoader.execute(
        "diffusion_models/mine.safetensors", "auto"
    ).args
    choice = sampling.detect.choose(model, "auto")
    assert choice.preset.timesteps == timesteps and choice.known and "the file mine.safetensors says so itself" in info
    assert f"{len(timesteps)} steps (" in info

    random = torch.Generator().manual_seed(1)
    shape, tokens, width = ((2, 16, 8, 8), 154, 4096) if kind == "flow" else ((2, 4, 4, 4), 77, 768)
    embeddings, pooled = torch.randn(1, tokens, width, generator=random), torch.randn(1, 2048, generator=random)
    positive = [[embeddings, {"pooled_output": pooled} if kind == "flow" else {}]]
    found = run(model, positive, {"samples": torch.zeros(shape)}, SEED, "auto")["samples"]

    own, own_start = sample.load_model(str(path), str(teacher))
    noises = [comfy.sample.prepare_noise(torch.zeros(shape), SEED)]
    draw = comfy.k_diffusion.sampling.default_noise_sampler(noises[0], seed=SEED)
    noises += [draw(None, None) for _ in timesteps[1:]]
    text = Text(embeddings, pooled=pooled if kind == "flow" else None).repeat(2)
    with torch.no_grad():
        wanted = own.all_steps(own.network, noises, text, own_start)
    scale = model.get_model_object("latent_format")
    wanted = scale.process_out(wanted)
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    one = own.one_step(own.network, noises[0], text, timesteps[0], own_start.noise)
    assert (scale.process_out(one) - wanted).norm() > 0.1 * wanted.norm()


def test_a_student_of_several_steps_is_saved_with_its_steps(sampling, model):
    """What ComfyUI's saving nodes write of it gives the same choice again."""
    told = {"snoopi.format": "1", "snoopi.preset": "pg-sb-sd15", "snoopi.timesteps": "999,749,499,249",
            "snoopi.start_timestep": "999", "snoopi.start_noise": "unit", "snoopi.prediction": "epsilon"}  # fmt: skip
    file = sampling.files.ModelFile("x.safetensors", told)
    choice = sampling.detect.choose(model, "auto", sampling.origin.Origin((file,)))
    assert choice.preset.timesteps == (999, 749, 499, 249) and choice.preset.renoise == "fresh"
    assert choice.preset.sampler == "lcm" and "4 steps (the file x.safetensors says so itself)" in choice.said
    words = sampling.saved._words(choice.preset)
    again = sampling.detect.choose(model, "auto", sampling.origin.Origin((sampling.files.ModelFile("y", words),)))
    assert again.preset == choice.preset


HOSTILE = ("", "x", "999,x", "249,999", "999,999", "999,-1", "1000,999", ",", "nan,1", "1" * 5000, ",".join("1" * 9999))


@pytest.mark.parametrize("listed", HOSTILE)
def test_steps_in_a_file_that_are_none_are_one_sentence(sampling, model, listed):
    told = {"snoopi.preset": "pg-sb-sd15", "snoopi.start_timestep": "999", "snoopi.timesteps": listed}
    file = sampling.files.ModelFile("x.safetensors", told)
    with pytest.raises(ValueError, match="^The file x.safetensors describes itself .*, field timesteps: ") as error:
        sampling.detect.choose(model, "auto", sampling.origin.Origin((file,)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
