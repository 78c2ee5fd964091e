"""The trainer under test, loaded from its folder without putting the repository on sys.path (see nodes/), and a tiny
teacher: a diffusers folder with 32 channels, one level, 4x4 latents, random weights."""

import importlib.util
import sys
from pathlib import Path

import pytest
import small_models

REPOSITORY = Path(__file__).parents[2]

if not hasattr(sys.modules.get("training"), "__file__"):
    spec = importlib.util.spec_from_file_location(
        "training", REPOSITORY / "training/__init__.py", submodule_search_locations=[str(REPOSITORY / "training")]
    )
    sys.modules["training"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["training"])


@pytest.fixture(scope="session")
def pixart(tmp_path_factory) -> Path:
    return small_models.make_pixart(tmp_path_factory.mktemp("pixart"))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory) -> Path:
    return small_models.make_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def sd3(tmp_path_factory) -> Path:
    """With CLIP-L, CLIP-G and T5."""
    return small_models.make_sd3(tmp_path_factory.mktemp("sd3"), clip_g=True, t5=True)


@pytest.fixture(scope="session")
def clip(tmp_path_factory, teacher) -> Path:
    return small_models.make_clip(tmp_path_factory.mktemp("clip"), teacher / "tokenizer")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    return small_models.make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def settings(teacher, tmp_path) -> dict:
    """Plain values of a run of a few steps through all three phases."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\nred\na circle\na pet\n")
    return {
        "teacher": str(teacher),
        "prompts": str(prompts),
        "output": str(tmp_path / "run"),
        "device": "cpu",
        "batch_size": 2,
        "steps": 4,
        "start": {"timestep": 625, "noise": "vp"},
        "student": {"learning_rate": 1e-4, "ema_decay": 0.9},
        "lora": {"rank": 2, "alpha": 2, "updates": 2, "initial_steps": 1},
        "warm_start": {"steps": 2, "pairs": 70, "sampler_steps": 2},
        "checkpoint_every": 1,
        "sample_every": 4,
        "sample_prompts": ["red", "a circle"],
        "samples_per_prompt": 3,
        "log_every": 1,
    }


@pytest.fixture(scope="module")
def warm_comfyui(tmp_path_factory):
    """warm_comfyui(checkout): an interpreter for COMFYUI_PYTHON that has that ComfyUI imported already."""
    from warm_comfyui import WarmComfyui

    warm = WarmComfyui(tmp_path_factory.mktemp("warm"))
    yield warm.interpreter
    warm.stop()


@pytest.fixture(autouse=True)
def logging_as_before():
    """The command line silences the libraries; here it runs in the tests' own process."""
    of_libraries = ("diffusers.utils.logging", "transformers.utils.logging")
    before = {name: sys.modules[name].get_verbosity() for name in of_libraries if name in sys.modules}
    yield
    for name in filter(sys.modules.__contains__, of_libraries):
        library = sys.modules[name]
        library.set_verbosity(before.get(name, library.WARNING))


@pytest.fixture(autouse=True)
def one_accelerator_a_run():
    """accelerate keeps one process-wide state; every run of a test session starts its own."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
