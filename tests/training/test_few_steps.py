"""A student of several steps: its timesteps, what it is given in training, its runs, files and pictures."""


from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from same_bits import goes_on_to_the_same_bits, same_checkpoints
from test_export import make_run

from training.distill import distill
from training.errors import UserError
from training.evaluate import painter, sample
from training.evaluate.prompt_set import Prompt
from training.evaluate.recipe import Variant
from training.export import export
from training.export.inspect import describe
from training.method.batches import Batch
from training.method.draws import Draws
from training.method.one_step import OneStep
from training.method.step import Step
from training.networks.backbones import load_backbone
from training.networks.parameterization import PREDICTIONS
from training.prompts.embeddings import PromptEmbeddings
from training.recipe.config import Start, parse
from training.run.checkpoint import load_newest
from training.run.plan import network_forwards
from training.run.preview import Preview, preview_noises
from training.shapes.command import main as main_of_shapes
from training.shapes.compare import distance
from training.shapes.world import ITEMS, paint

FOUR = {"timestep": 625, "noise": "vp", "steps": 4}


@pytest.mark.parametrize(
    "start, wanted",
    [
        ({}, (999,)),
        ({"steps": 2}, (999, 499)),
        ({"steps": 4}, (999, 749, 499, 249)),  # DMD2's own
        ({"steps": 8}, (999, 874, 749, 624, 499, 374, 249, 124)),
        ({"timestep": 625, "steps": 4}, (625, 468, 312, 156)),
        ({"timestep": 720, "steps": 4}, (720, 540, 360, 180)),
        ({"steps": 4, "later": [800, 500, 200]}, (999, 800, 500, 200)),
    ],
)
def test_the_listed_timesteps_follow_the_start(start, wanted):
    assert Start(**start).timesteps == wanted


@pytest.mark.parametrize(
    "start, sentence",
    [
        ({"steps": 0}, "start.steps is 0; allowed is a whole number from 1 to 8"),
        ({"steps": 9}, "start.steps is 9; allowed is a whole number from 1 to 8"),
        ({"timestep": 3, "steps": 4}, r"are \[3, 2, 1, 0\], which are no 4 steps above 0; start later, or with fewer"),
        ({"steps": 3, "later": [499, 499]}, r"are \[999, 499, 499\], which do not fall .*; write each smaller"),
        ({"timestep": 400, "steps": 2, "later": [400]}, r"are \[400, 400\], which do not fall"),
        ({"timestep": 400, "steps": 2, "later": [900]}, "do not fall"),
        ({"steps": 4, "later": [499]}, r"start.later is \[499\], so there are 2 steps .*write `steps: 2`, or leave"),
        ({"later": [499]}, "start.steps is 1; write `steps: 2`"),
        ({"steps": 2, "later": [0]}, r"start.later is \[0\]; allowed is a list of whole numbers"),
        ({"steps": 2, "later": []}, "allowed is a list of whole numbers from 1 to 998, at least one"),
        ({"steps": 2, "later": 499}, "allowed is a list of whole numbers from 1 to 998, at least one"),
        ({"steps": 2, "later": ["x"]}, "allowed is a list of whole numbers from 1 to 998, at least one"),
        ({"steps": 2, "later": [True]}, "allowed is a list of whole numbers from 1 to 998, at least one"),
        ({"steps": 2, "later": [499.5]}, "allowed is a list of whole numbers from 1 to 998, at least one"),
    ],
)
def test_a_list_that_no_student_can_have_is_one_sentence(settings, start, sentence):
    with pytest.raises(UserError, match=sentence) as told:
        parse(settings | {"start": start}, "c.yaml")
    assert "\n" not in str(told.value) and str(told.value).startswith("c.yaml: ") and len(str(told.value)) < 300


def test_one_step_is_what_it_was_bit_for_bit(settings, monkeypatch):
    """Against the code of before few steps, in all phases, with NASA-T's strength drawn behind the noise."""
    start = settings["start"] | {"steps": 1}
    distill(parse(settings | {"start": start, "sample_every": 100}))
    found = load_newest(Path(settings["output"]))

    def one_step(self, network, step, rows):
        z, text = step.z[rows].to(self.backbone.device), step.batch.text(rows)
        t = torch.full((len(z),), self.start.timestep, dtype=torch.long, device=z.device)
        alpha, sigma = self.backbone.coefficients(t)
        x = sigma * z.float()
        _, to_x0 = PREDICTIONS[self.backbone.prediction_type]
        return to_x0(self.backbone.output(network, x, t, text), x, alpha, sigma)

    def draw_samples(self, steps):
        self.z, self.x0 = self.draws.latents(), {}

    monkeypatch.setattr(OneStep, "__call__", one_step)
    monkeypatch.setattr(Step, "draw_samples", draw_samples)
    distill(parse(settings | {"output": settings["output"] + "-before", "sample_every": 100}))
    before = load_newest(Path(settings["output"] + "-before"))
    same_checkpoints(before, found)


class Parts:
    def __init__(self, kind: str, folder: str, **start):
        self.backbone = load_backbone(kind, folder)
        self.start = Start(**FOUR | start)
        network = self.backbone.network.requires_grad_(True)
        self.one_step = OneStep(network, network, self.backbone, self.start, torch.no_grad)
        self.embeddings = PromptEmbeddings(self.backbone, ["red", "a pet", "a circle"], megabytes=1)

    def step(self, places: list[int]) -> Step:
        step = Step(3, Draws(0, 3, len(places), self.backbone.latent_shape()))
        step.draw_samples(self.start.steps)
        step.places = torch.tensor(places)
        step.batch = Batch(self.embeddings, [number % 3 for number in range(len(places))], None)
        return step


@pytest.fixture(params=["stable_diffusion", "v", "stable_diffusion_xl", "pixart", "stable_diffusion3"])
def parts(request, teacher, sdxl, pixart, sd3):
    folders = {"stable_diffusion_xl": sdxl, "pixart": pixart, "stable_diffusion3": sd3}
    if request.param != "v":
        return Parts(request.param, str(folders.get(request.param, teacher)))
    parts = Parts("stable_diffusion", str(teacher), timestep=999, noise="unit")
    parts.backbone.prediction_type = "v_prediction"
    return parts


def test_a_sample_is_given_what_it_will_be_given_when_the_student_is_used(parts):
    """At its place k of the list it is the picture of all_steps of a student that ends there, of eps, v and flow."""
    step = parts.step([2, 0, 3, 1, 3])
    text = parts.embeddings.batch(step.batch.chosen)
    for rows in slice(0, 5), slice(2, 4), slice(1, 2):
        found = parts.one_step(parts.one_step.student, step, rows)
        assert found.requires_grad
        for row, place in enumerate(step.places[rows].tolist(), start=rows.start):
            one = slice(row, row + 1)
            shorter = {"steps": place + 1, "later": list(parts.start.timesteps[1 : place + 1]) or None}
            start = Start(**parts.start.model_dump() | shorter)
            noises = [noise[one] for noise in (step.z, *step.fresh[:place])]
            wanted = parts.backbone.all_steps(parts.one_step.student, noises, text[one], start)
            at = row - rows.start
            torch.testing.assert_close(found[at : at + 1], wanted, rtol=1e-4, atol=1e-5)
    assert not torch.equal(step.z, step.fresh[0])


def test_every_process_of_a_split_student_calls_it_equally_often(parts):
    """By the batch's last place and not by that of its own rows, and the pictures are the same."""
    step, calls = parts.step([0, 3, 0]), []
    parts.one_step.student.register_forward_pre_hook(lambda *_: calls.append(1))
    alone = parts.one_step(parts.one_step.student, step, slice(0, 1))
    assert len(calls) == 1
    parts.one_step.split = True
    calls.clear()
    together = parts.one_step(parts.one_step.student, step, slice(0, 1))
    assert len(calls) == 4 and torch.equal(alone, together)
    parts.one_step(parts.one_step.student, step, slice(1, 3))
    assert len(calls) == 8


def test_every_step_is_drawn_alike_often_and_by_step_and_sample_alone():
    places = torch.cat([Draws(0, number, 64, (1, 1, 1)).places(4) for number in range(50)])
    assert all(0.2 < (places == place).float().mean() < 0.3 for place in range(4))
    one, other = (Draws(0, 7, 64, (1, 1, 1)).places(4) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["stable_diffusion", "stable_diffusion3"])
def test_a_stopped_run_of_four_steps_goes_on_to_the_same_bits(settings, sd3, kind, tmp_path):
    settings |= {"start": FOUR, "steps": 2, "batch_size": 4, "micro_batch": 2, "warm_start": None}
    settings |= {"backbone": kind} | ({"teacher": str(sd3)} if kind == "stable_diffusion3" else {})
    other = goes_on_to_the_same_bits(settings, tmp_path / "stopped")
    with pytest.raises(UserError, match="start.steps was 4 and is 2"):
        distill(parse(other | {"start": FOUR | {"steps": 2}}), resume=True)


@torch.no_grad()
def test_the_sample_grid_is_of_all_steps(teacher, tmp_path):
    parts = Parts("stable_diffusion", str(teacher))
    noises = preview_noises(5, 3, parts.backbone.latent_shape(), 4)
    assert len({float(noise.sum()) for noise in noises}) == 4
    (alone,) = preview_noises(5, 3, parts.backbone.latent_shape())
    assert torch.equal(alone, noises[0])  # the grids of one step are those of before
    text = parts.backbone.encode(["red", "a pet"])
    preview = Preview(tmp_path, parts.backbone, parts.backbone.network, parts.start, noises, ["red", "a pet"], text)
    found, network = preview.latents(None), parts.backbone.network
    for row in range(2):
        words = text[row : row + 1].repeat(3)
        x0 = parts.backbone.one_step(network, noises[0], words, 625, "vp")
        for timestep, noise in zip((468, 312, 156), noises[1:], strict=True):
            t = torch.full((3,), timestep)
            alpha, sigma = parts.backbone.coefficients(t)
            x = alpha * x0 + sigma * noise
            x0 = (x - sigma * parts.backbone.predict(network, x, t, words)) / alpha
        torch.testing.assert_close(found[row], x0, rtol=1e-4, atol=1e-5)


def test_the_exported_file_lists_its_timesteps_and_every_reader_runs_them(teacher, tmp_path):
    run = make_run(tmp_path / "run", teacher, start=FOUR)
    path = tmp_path / "student.safetensors"
    assert export(run, path, check="diffusers") < 1e-5
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert (told["snoopi.timesteps"], told["snoopi.start_timestep"]) == ("625,468,312,156", "625")
    assert told["modelspec.timestep_range"] == "156,625" and told["modelspec.description"].startswith("Four-step")
    assert "4 steps, at timesteps 625, 468, 312, 156, vp noise first" in told["modelspec.usage_hint"]
    assert "4 steps, new noise between them, at timesteps 625,468,312,156, CFG 1" in describe(path)
    assert "4 steps from timestep 625" in describe(run)

    backbone, start = sample.load_model(str(path), str(teacher))
    assert start.timesteps == (625, 468, 312, 156) == sample.load_model(str(run))[1].timesteps
    latents = sample.sample(backbone, ["red"], 2, 0, start)
    first = sample.sample(backbone, ["red"], 2, 0, Start(timestep=625, noise="vp"))
    assert latents.shape == first.shape and not torch.allclose(latents, first, atol=1e-2)

    def pixels(**changes):
        paint = painter.make_painter(backbone, start, Variant(model="m", **changes))
        return paint([Prompt("0", "red"), Prompt("1", "a pet")])

    assert numpy.array_equal(pixels(), pixels(steps=4, sampler="renoise"))  # evenly apart, as the file's own
    assert not numpy.array_equal(pixels(), pixels(steps=2, sampler="renoise"))


def test_a_file_of_one_step_says_what_it_said(teacher, tmp_path):
    run = make_run(tmp_path / "run", teacher, start={"timestep": 625, "noise": "vp"})
    export(run, tmp_path / "student.safetensors", check="diffusers")
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        told = file.metadata()
    assert "snoopi.timesteps" not in told and told["modelspec.timestep_range"] == "625,625"
    assert told["modelspec.usage_hint"] == "One step from timestep 625, vp noise, CFG 1."
    assert told["modelspec.description"].startswith("One-step text-to-image student")


@pytest.mark.parametrize("listed", ["", "x", "625", "999,749", "625,625", "625,700", "625,0", "625,,2", "9" * 5000])
def test_a_file_that_lists_no_steps_is_one_sentence(listed):
    told = {"snoopi.start_timestep": "625", "snoopi.start_noise": "vp", "snoopi.timesteps": listed}
    if listed == "625":  # a list of one is one step
        assert sample.start_told(told, "unit", "f").timesteps == (625,)
        return
    with pytest.raises(UserError, match="^f: snoopi.timesteps is .*; it must be up to 8 whole numbers that fall"):
        sample.start_told(told, "unit", "f")


@pytest.mark.parametrize(
    "options, timesteps, sampler",
    [
        ((), (625, 468, 312, 156), None),
        (("--timestep", "400"), (400, 300, 200, 100), None),
        (("--steps", "1"), (625,), None),
        (("--steps", "5"), (625, 468, 312, 156), 5),
    ],
)
def test_sample_draws_all_steps_of_a_run(teacher, tmp_path, monkeypatch, options, timesteps, sampler):
    from training.__main__ import main

    make_run(tmp_path / "run", teacher, start=FOUR)
    asked, real = [], sample.sample

    def watched(*given, **named):
        asked.append((named["start"].timesteps, named["steps"]))
        return real(*given, **named)

    monkeypatch.setattr(sample, "sample", watched)
    output = ["--output", str(tmp_path / "grid.png"), "--count", "1"]
    command = ["sample", str(tmp_path / "run"), "--prompt", "red", *output]
    assert main([*command, *options]) == 0
    assert asked == [(timesteps, sampler)] and (tmp_path / "grid.png").exists()
    assert main([*command, "--timestep", "3"]) == 2  # told: no four steps above 0


def test_the_command_that_compares_students_of_the_demo_world(teacher, tmp_path, monkeypatch, capsys):
    """A run of four steps and a file of one; random weights: no figure of a student."""
    drawn = numpy.stack([paint(item) for item in ITEMS[::60]])
    assert distance(drawn) == 0
    nearly = numpy.where(drawn > 127, drawn - 51, drawn + 51).astype(numpy.uint8)  # a fifth of the range
    assert 0.1 < distance(nearly) <= 0.2001
    four = make_run(tmp_path / "four", teacher, start=FOUR)
    one = tmp_path / "one.safetensors"
    export(make_run(tmp_path / "run", teacher, start=FOUR | {"steps": 1}), one, check="diffusers")
    command = ["shapes", "compare", str(four), str(one), "--teacher", str(teacher), "--count", "4"]
    monkeypatch.setattr("sys.argv", command)
    assert main_of_shapes("training.shapes", "of the tests", str(tmp_path)) == 0
    _, of_four, of_one = capsys.readouterr().out.strip().splitlines()
    assert "625, 468, 312, 156" in of_four and "625 " in of_one and "468" not in of_one
    assert all(line.split()[-2].endswith("%") and 0 < float(line.split()[-1]) < 1 for line in (of_four, of_one))


def test_the_plan_counts_the_earlier_steps(settings):
    def forwards(**changes):
        return network_forwards(parse(settings | changes))

    one = forwards(start={"steps": 1})
    assert forwards(start={"steps": 4}) == one + 1.5 + 1.5  # the student's update, and fresh samples of one LoRA update
    assert forwards(start={"steps": 2}) == one + 0.5 + 0.5
