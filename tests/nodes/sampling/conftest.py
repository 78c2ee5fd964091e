"""What the tests of presets share: narrow models of every backbone, and a shared model left as it was."""

import importlib.util
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch

from presets import narrow


@pytest.fixture(autouse=True)
def unloaded():
    """No model stays loaded with a preset's patches on it."""
    yield
    comfy.model_management.unload_all_models()


@pytest.fixture
def model(model):
    yield model
    comfy.model_management.unload_all_models()


@pytest.fixture(scope="session")
def sampling(pack):
    """The modules of this part of the pack by name."""
    names = ["backbones", "presets", "names", "schedule", "latent", "files", "graph", "loras", "origin", "base",
             "saved", "detect", "parameterization", "one_step", "load"]  # fmt: skip
    modules = {name: importlib.import_module(f"{pack.root.__name__}.nodes.sampling.{name}") for name in names}
    nodes = ["preset_choice", "one_step_sampler", "model_sampling", "scheduler", "checkpoint_loader"]
    modules |= {
        f"{name}_node": importlib.import_module(f"{pack.root.__name__}.nodes.{name}")
        for name in nodes
        if importlib.util.find_spec(f"{pack.root.__name__}.nodes.{name}")
    }
    return SimpleNamespace(**modules)


@pytest.fixture(scope="session")
def narrow_model(models):
    """narrow_model(backbone) -> ModelPatcher, built once."""
    built = {"SD 1.x": models["SD 1.5"], "SD 2.x": models["SD 2.1"], "SDXL": models["SDXL"]}

    def narrow_model(backbone):
        if backbone not in built:
            built[backbone] = narrow.build(backbone)
        return built[backbone]

    return narrow_model


@pytest.fixture
def run(pack):
    """run(model, positive, latent, seed=5, preset="sd", **inputs) -> LATENT of the one-step sampler"""

    def run(model, positive, latent, seed=5, preset="sd", **inputs):
        with torch.inference_mode():
            return pack.one_step_sampler.SNOOPIOneStepSampler.execute(
                model, positive, latent, seed, preset, **inputs
            ).args[0]

    return run


@pytest.fixture
def user_rows(sampling, tmp_path, monkeypatch):
    """user_rows(text): write ComfyUI's user table of presets."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))

    def user_rows(text):
        sampling.presets.user_path().write_text(text, encoding="utf-8")

    return user_rows
