"""Each update by itself: a batch and the step's draws in, one loss a sample out. No loop, no optimiser, no machine."""

from contextlib import nullcontext

import pytest
import torch

from training.method.batches import Batch, Batches
from training.method.draws import STEP, Draws, generator
from training.method.guidance import Guidance
from training.method.lora_update import LoraUpdate
from training.method.one_step import OneStep
from training.method.step import Step
from training.method.student_update import StudentUpdate
from training.method.warm_start import WarmStartUpdate
from training.networks.backbones import load_backbone
from training.networks.student import make_student, student_origin
from training.networks.teachers import Teachers
from training.prompts.embeddings import PromptEmbeddings
from training.recipe.config import Lora, Start, Student, Vsd

PROMPTS = ["a red circle", "a blue square", "a pet"]
SIZE, SEED = 3, 4
ROWS = [slice(0, 2), slice(2, 3)]  # parts of a batch, as micro-batches or processes take them


class Parts:
    """What the updates are made of."""

    def __init__(self, kind: str, folder: str):
        torch.manual_seed(0)
        self.backbone = load_backbone(kind, folder)
        self.shape = self.backbone.latent_shape()
        self.embeddings = PromptEmbeddings(self.backbone, PROMPTS, megabytes=1)
        student = make_student(student_origin(self.backbone, Student()), Student())
        self.student = student
        self.teachers = Teachers(self.backbone.network, Lora(rank=2), self.backbone.predict)
        for name, weight in self.teachers.network.named_parameters():
            if "lora_B" in name:  # else both scores are the same
                torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
        self.one_step = OneStep(student, student, self.backbone, Start(timestep=625, noise="vp"), nullcontext)

    def step(self) -> Step:
        step = Step(7, Draws(SEED, 7, SIZE, self.shape))
        step.z, step.batch = step.draws.latents(), Batch(self.embeddings, [2, 0, 1], None)
        return step

    def pictures(self, step: Step, rows: slice) -> torch.Tensor:
        """x0 = (x - sigma eps) / alpha from x = sigma z, by hand."""
        alpha, sigma = self.backbone.alphas[625], self.backbone.sigmas[625]
        x, t = sigma * step.z[rows], torch.full((len(step.z[rows]),), 625)
        return (x - sigma * self.backbone.predict(self.student, x, t, step.batch.text(rows))) / alpha

    def score(self, x_t, t, text, null) -> torch.Tensor:
        """eps with a guidance of 2, in two calls."""
        of_text, of_null = (self.backbone.predict(self.teachers.network, x_t, t, one) for one in (text, null))
        return of_null + 2 * (of_text - of_null)


@pytest.fixture(scope="module", params=["stable_diffusion", "stable_diffusion_xl", "pixart"])
def parts(request, teacher, sdxl, pixart):
    folders = {"stable_diffusion": teacher, "stable_diffusion_xl": sdxl, "pixart": pixart}
    return Parts(request.param, str(folders[request.param]))


def again(count: int, shape: tuple) -> list[torch.Tensor]:
    """The first draws of that step once more: latents, and then what the test asks for."""
    random = generator(SEED, STEP, 7)
    return [random, *(torch.randn((SIZE, *shape), generator=random) for _ in range(count))]


def test_the_students_update_alone_is_the_weighted_score_difference(parts):
    gaps = []
    guidance = Guidance((2.0, 2.0), "batch", "both", 1.0)
    settings = Vsd(timesteps=(300, 700))
    backbone = parts.backbone
    update = StudentUpdate(
        parts.one_step, backbone, parts.teachers, guidance, settings, None, lambda *seen: gaps.append(seen)
    )
    step = parts.step()
    of = update.losses(step)
    random, _ = again(1, parts.shape)
    torch.rand((1, 1, 1, 1), generator=random)  # kappa
    t = torch.randint(300, 701, (SIZE,), generator=random)
    noise = torch.randn((SIZE, *parts.shape), generator=random)
    for rows in ROWS:
        losses = of(rows)
        assert losses.shape == (rows.stop - rows.start,) and losses.requires_grad
        with torch.no_grad():
            x0 = parts.pictures(step, rows)
            alpha, sigma = backbone.alphas[t[rows]].view(-1, 1, 1, 1), backbone.sigmas[t[rows]].view(-1, 1, 1, 1)
            x_t, text, null = alpha * x0 + sigma * noise[rows], step.batch.text(rows), step.batch.null(rows)
            asked = (x_t, t[rows], text, null)
            difference = -parts.score(*asked)
            with parts.teachers.network.disable_adapter():
                difference += parts.score(*asked)
        wanted = 0.5 * (sigma**2 * difference).square().flatten(1).mean(1)
        torch.testing.assert_close(losses, wanted, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(step.x0[rows.start], x0, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gaps[-1][1], difference, rtol=1e-3, atol=1e-4)
        losses.sum().backward()
        assert any(weight.grad.any() for weight in parts.student.parameters() if weight.grad is not None)
        assert all(weight.grad is None for weight in parts.teachers.parameters())
    assert [len(told) for told in step.figures["vsd_loss"]] == [2, 1]
    parts.student.zero_grad()


@pytest.mark.parametrize("blind", [0.0, 1.0])
def test_the_lora_update_alone_is_denoising_of_the_students_pictures(parts, blind):
    backbone, settings = parts.backbone, Lora(rank=2, null_probability=blind, timesteps=(100, 900))
    batches = Batches(parts.embeddings, (), SIZE, SEED)
    update = LoraUpdate(0, parts.one_step, backbone, parts.teachers, settings, batches, lambda step, index: step)
    step = parts.step()
    of = update.losses(step)
    random, _ = again(1, parts.shape)
    t = torch.randint(100, 901, (SIZE,), generator=random)
    noise = torch.randn((SIZE, *parts.shape), generator=random)
    for rows in ROWS:
        losses = of(rows)
        assert losses.shape == (rows.stop - rows.start,)
        with torch.no_grad():
            alpha, sigma = backbone.alphas[t[rows]].view(-1, 1, 1, 1), backbone.sigmas[t[rows]].view(-1, 1, 1, 1)
            x_t = alpha * parts.pictures(step, rows) + sigma * noise[rows]
            seen = step.batch.null(rows) if blind else step.batch.text(rows)
            eps = backbone.predict(parts.teachers.network, x_t, t[rows], seen)
        wanted = (alpha**2 * (eps - noise[rows]).square()).flatten(1).mean(1)
        torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-6)
        losses.sum().backward()
        assert any(weight.grad.any() for weight in parts.teachers.parameters())
        assert all(weight.grad is None for weight in parts.student.parameters())
    parts.teachers.network.zero_grad()


def test_a_later_lora_update_alone_draws_samples_and_prompts_of_its_own(parts):
    batches = Batches(parts.embeddings, (), SIZE, SEED)
    rest = (parts.one_step, parts.backbone, parts.teachers)
    update = LoraUpdate(1, *rest, Lora(rank=2, updates=2), batches, lambda step, index: 100 * step + index)
    step = parts.step()
    first, z = step.batch, step.z
    update.losses(step)
    assert step.batch is not first and step.batch.chosen == batches(701).chosen
    assert not torch.equal(step.z, z)
    reusing = LoraUpdate(1, *rest, Lora(rank=2, updates=2, fresh=False), batches, lambda step, index: 0)
    step = parts.step()
    reusing.losses(step)
    assert torch.equal(step.z, z) and step.batch.chosen == first.chosen


def test_the_warm_starts_update_alone_is_the_distance_from_its_pairs(parts):
    random = torch.Generator().manual_seed(5)
    pairs = {name: torch.randn((5, *parts.shape), generator=random) for name in ("z", "x0")}
    pairs["prompt"] = torch.tensor([0, 2, 1, 0, 2])
    update = WarmStartUpdate(parts.one_step, pairs, parts.embeddings, 5, SEED)
    step = Step(7, Draws(SEED, 7, SIZE, parts.shape))
    of = update.losses(step)
    chosen = update.order.batch(7 * SIZE, SIZE)
    assert len(set(chosen)) > 1 and torch.equal(step.z, pairs["z"][chosen])
    assert step.batch.chosen == pairs["prompt"][chosen].tolist()
    for rows in ROWS:
        losses = of(rows)
        with torch.no_grad():
            wanted = (parts.pictures(step, rows) - pairs["x0"][chosen][rows]).square().flatten(1).mean(1)
        torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-6)
        assert losses.requires_grad
