"""Several processes, and several parts of a batch, against one process that computes the batch at once."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from training.distill import distill
from training.errors import UserError
from training.networks.backbones import load_backbone
from training.networks.sharding import check_can_shard
from training.networks.student import make_student
from training.recipe.config import parse
from training.run.checkpoint import load_newest

REPOSITORY = Path(__file__).parents[2]
FOUR_STEPS = {"start": {"timestep": 625, "noise": "vp", "steps": 4}}


@pytest.fixture
def batch_of_eight(settings):
    """Every phase and every draw that a sample has of its own."""
    return settings | {
        "batch_size": 8,
        "steps": 3,
        "kappa_per": "sample",
        "student": {"learning_rate": 1e-6, "betas": [0, 0.99], "ema_decay": 0.9},
        "warm_start": {"steps": 1, "pairs": 8, "sampler_steps": 2},
        "lora": {"rank": 2, "alpha": 2, "updates": 2, "initial_steps": 1, "learning_rate": 1e-2, "betas": [0, 0.99]},
    }


def launch(settings: dict, folder: Path, processes: int, *options: str, **environment) -> subprocess.CompletedProcess:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += ["-m", "training", "distill", str(config), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)


def after(steps: int):
    """For `stop`: true from the end of that step on."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked, steps) >= steps


def apart(one: dict, other: dict, origin: dict | None = None) -> float:
    """|one - other| / |one - origin| over all tensors of a state dict."""
    difference = sum((one[key] - other[key]).double().square().sum() for key in one)
    way = sum((one[key] - (origin[key] if origin else 0)).double().square().sum() for key in one)
    assert way > 0
    return float((difference / way).sqrt())


def gradients(optimizer: dict) -> dict:
    """What AdamW with beta1 0 keeps of the last gradients."""
    return {index: state["exp_avg"] for index, state in optimizer["state"].items()}


def assert_same_training(one: Path, other: Path, teacher: str):
    """The last gradients alike to fp32 rounding; the weights too, but Adam enlarges the rounding of tiny gradients."""
    start = load_backbone("stable_diffusion", teacher).network.state_dict()
    first, second = load_newest(one), load_newest(other)
    found = {role: apart(first.weights[role], second.weights[role], start) for role in ("student", "ema")}
    found["lora"] = apart(first.weights["lora"], second.weights["lora"])
    assert max(found.values()) < 1e-2, found
    pairs = {role: (gradients(first.optimizers[role]), gradients(second.optimizers[role])) for role in first.optimizers}
    found = {role: apart(*pair) for role, pair in pairs.items()}

    assert max(found.values()) < 2e-5, found


def test_two_processes_train_as_one(batch_of_eight, tmp_path):
    """Of four steps, whose places and noises every sample draws too; of one: the split run that goes on whole."""
    batch_of_eight |= FOUR_STEPS
    distill(parse(batch_of_eight | {"output": str(tmp_path / "one")}))
    done = launch(batch_of_eight | {"output": str(tmp_path / "two")}, tmp_path, 2)
    assert done.returncode == 0, done.stderr[:6000]
    assert_same_training(tmp_path / "one", tmp_path / "two", batch_of_eight["teacher"])
    assert len((tmp_path / "two/metrics.jsonl").read_text().splitlines()) == 5  # by the first process alone


@pytest.fixture
def sharded(batch_of_eight):
    """In parts and with recomputed activations, as a student that has to be split will be trained."""
    student = batch_of_eight["student"] | {"shard": True}
    return batch_of_eight | {"student": student, "micro_batch": 2, "gradient_checkpointing": True}


def test_a_student_split_over_two_processes_trains_as_one(batch_of_eight, sharded, tmp_path):
    """Of four steps: the processes run the earlier ones of their samples together, however many each has."""
    batch_of_eight, sharded = batch_of_eight | FOUR_STEPS, sharded | FOUR_STEPS
    distill(parse(batch_of_eight | {"output": str(tmp_path / "one")}))
    done = launch(sharded | {"output": str(tmp_path / "two")}, tmp_path, 2)
    assert done.returncode == 0, done.stderr[:6000]
    assert_same_training(tmp_path / "one", tmp_path / "two", batch_of_eight["teacher"])
    assert (tmp_path / "two/samples/step-00000005.png").exists()


def test_a_split_run_goes_on_whole_and_a_whole_one_split(batch_of_eight, sharded, tmp_path):
    """The checkpoint is the same file either way; accelerate's own wish for FSDP counts as student.shard."""
    distill(parse(batch_of_eight | {"output": str(tmp_path / "one")}))
    mixed = {"output": str(tmp_path / "two")}
    with pytest.raises(KeyboardInterrupt):
        distill(parse(batch_of_eight | mixed), stop=after(2))
    split = launch(batch_of_eight | mixed | {"steps": 2}, tmp_path, 2, "--resume", ACCELERATE_USE_FSDP="true")
    assert split.returncode == 0, split.stderr[:6000]
    distill(parse(batch_of_eight | mixed), resume=True)
    assert_same_training(tmp_path / "one", tmp_path / "two", batch_of_eight["teacher"])


KINDS = {
    "stable_diffusion": {},
    "stable_diffusion, v": {"clip": True, "nasa": True},
    "pixart": {},
    "stable_diffusion_xl": {},
    "stable_diffusion_xl, LoRA": {"lora": True},
    "stable_diffusion3": {"lora_weight": "velocity"},
}
WAYS = [(kind, way) for kind in KINDS for way in ("two", "split") if not (way == "split" and "lora" in KINDS[kind])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher, pixart, sdxl, sd3, clip):
    """A folder with all KINDS of run, each by one process, by two, and by two with the student split."""
    folder = tmp_path_factory.mktemp("runs")
    v = shutil.copytree(teacher, folder / "v")
    scheduler = v / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    (folder / "prompts.txt").write_text("a red circle\na blue square\nred\na circle\na pet\n")
    teachers = {"stable_diffusion": teacher, "pixart": pixart, "stable_diffusion_xl": sdxl, "stable_diffusion3": sd3}
    cases = []
    for kind, wanted in KINDS.items():
        backbone, _, variant = kind.partition(", ")
        of_student = {"lora": {"rank": 2, "alpha": 2}} if "lora" in wanted else {}
        case = {
            "backbone": backbone,
            "teacher": str(v if variant == "v" else teachers[backbone]),
            "prompts": str(folder / "prompts.txt"),
            "output": str(folder / kind),
            "device": "cpu",
            "batch_size": 4,
            "steps": 2,
            "kappa_per": "sample",
            "start": {"timestep": 625, "noise": "vp"},
            "student": {"learning_rate": 1e-6, "betas": [0, 0.99], "ema_decay": 0.9} | of_student,
            "warm_start": {"steps": 1, "pairs": 4, "sampler_steps": 2},
            "lora": {"rank": 2, "alpha": 2, "updates": 2, "initial_steps": 1, "learning_rate": 1e-3, "betas": [0, 0.99],
                     "weight": wanted.get("lora_weight", "alpha_squared")},
            "sample_prompts": ["red"],
            "samples_per_prompt": 2,
        }  # fmt: skip
        if "clip" in wanted:
            case["clip"] = {"model": str(clip), "decoder": None, "one_in": 3, "margin": 0.9}
        if "nasa" in wanted:
            case["nasa"] = {"prompts": str(folder / "prompts.txt")}
        cases.append(case)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("two_processes.py"))
    done = subprocess.run(
        [sys.executable, script], input=json.dumps(cases), env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("kind, way", WAYS, ids=[", ".join(way) for way in WAYS])
def test_two_processes_are_one_for_every_backbone_whole_and_split(runs, kind, way):
    """The last gradients and all weights, relative, in fp64: what order of adding leaves is under 1e-12 of a gradient,
    and Adam enlarges that of the tiniest."""
    first, second = load_newest(runs / kind / "one"), load_newest(runs / kind / way)
    assert first.state == second.state == {"step": 4, "bad_steps": 0}
    found = {f"weights of {role}": apart(first.weights[role], second.weights[role]) for role in first.weights}
    for role, optimizer in first.optimizers.items():
        found[f"gradient of {role}"] = apart(gradients(optimizer), gradients(second.optimizers[role]))
    print(kind, way, {name: f"{value:.0e}" for name, value in found.items()})
    assert found.keys() == {f"{what} of {role}" for what in ("weights", "gradient") for role in ("student", "lora")} | {
        "weights of ema"
    }
    assert max(found.values()) < 1e-10, found
    assert {tensor.dtype for tensor in gradients(second.optimizers["student"]).values()} == {torch.float64}
    assert (runs / kind / way / "samples/step-00000004.png").exists()


HOLDINGS = """
import torch
from training.networks.backbones import load_backbone
from training.networks.sharding import own_part, shard
torch.distributed.init_process_group("gloo")
backbone = load_backbone("stable_diffusion", TEACHER)
network = backbone.network.requires_grad_(True)
whole = sum(weight.numel() for weight in network.parameters())
shard(network, torch.device("cpu"), 2)
optimizer = torch.optim.AdamW(network.parameters(), fused=True)
z, text = torch.randn(2, *backbone.latent_shape()), backbone.encode(["red"] * 2)
backbone.one_step(network, z, text, 625, "vp").sum().backward()
optimizer.step()
weights = list(network.parameters())
for held in weights, [weight.grad for weight in weights], [optimizer.state[weight]["exp_avg"] for weight in weights]:
    share = sum(own_part(tensor).numel() for tensor in held) / whole
    assert 0.4 < share < 0.6, share
torch.distributed.destroy_process_group()
"""


def test_each_process_holds_half_of_weights_gradients_and_optimiser(teacher, tmp_path):
    script = tmp_path / "holdings.py"
    script.write_text(HOLDINGS.replace("TEACHER", repr(str(teacher))))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[:6000]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"optimizer": "adamw_8bit"}, "is optimised by adamw_8bit"),
        ({"student": {"lora": {"rank": 2}}}, "is a LoRA, which is small already"),
        ({"nasa": {}}, "trains with NASA and is a PixArt"),
    ],
)
def test_what_cannot_be_split_is_named(sharded, pixart, change, reason):
    network = load_backbone("pixart", str(pixart)).network

    def check(settings):
        student = make_student(copy.deepcopy(network), settings.student, nasa=settings.nasa is not None)
        check_can_shard(student, settings.optimizer, nasa=settings.nasa is not None)

    check(parse(sharded))
    with pytest.raises(UserError, match=f"cannot split a student that {reason}; set"):
        check(parse(sharded | change))


@pytest.mark.parametrize("change", [{"micro_batch": 2}, {"gradient_checkpointing": True}])
def test_accumulated_or_recomputed_gradients_are_the_same(batch_of_eight, tmp_path, change):
    distill(parse(batch_of_eight | {"output": str(tmp_path / "one")}))
    distill(parse(batch_of_eight | {"output": str(tmp_path / "two")} | change))
    assert_same_training(tmp_path / "one", tmp_path / "two", batch_of_eight["teacher"])


def test_a_mistake_stops_every_process_with_one_sentence(batch_of_eight, tmp_path):
    done = launch(batch_of_eight | {"batch_size": 5}, tmp_path, 2)
    assert done.returncode != 0
    assert "batch_size is 5; 2 processes share it" in done.stderr
    assert not (tmp_path / "run").exists()


def test_micro_batch_must_divide_the_share(batch_of_eight):
    with pytest.raises(UserError, match="batch_size is 8; it must be a multiple of micro_batch, 3"):
        distill(parse(batch_of_eight | {"micro_batch": 3}))
