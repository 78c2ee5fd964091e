"""Closed form: two Gaussian classes, perfect scores, a linear student. Only the shipped loss and guidance are tested.

Teacher of class c: N(m_c, s^2), m = -2 and 2, s = .5. Student G(z) = a_c z + b_c. The null prompt is the mixture. In
diffusion the networks say eps, in flow eps - x0.
"""

import pytest
import torch

from training.method.guidance import draw_kappa, guided, unequal_scales
from training.method.losses import sigma_squared_weight, vsd_loss
from training.networks.parameterization import PREDICTIONS
from training.networks.text import Text

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
CUMULATIVE = torch.cumprod(1 - BETAS, 0)
TIMES = torch.arange(1000, dtype=torch.float64) / 1000
#: {what the networks say: alphas and sigmas of x_t}
SCHEDULES = {"epsilon": (CUMULATIVE.sqrt(), (1 - CUMULATIVE).sqrt()), "flow-": (1 - TIMES, TIMES)}
MEANS, DEVIATION = torch.tensor([-2.0, 2.0], dtype=torch.float64), 0.5


def perfect_eps(x_t, t, text, means, deviations, prediction):
    """eps = sigma (x_t - alpha m) / V of the class in `text` (0 or 1); of the even mixture where text is -1.

    Said as `prediction`, and translated back by the trainer.
    """
    text = text.embeddings
    alpha, sigma = (table[t][:, None] for table in SCHEDULES[prediction])
    variance = alpha**2 * deviations**2 + sigma**2  # [n, 2], a column a class
    residual = x_t - alpha * means
    eps = sigma * residual / variance
    mixture = torch.softmax(-0.5 * (residual**2 / variance + variance.log()), 1)
    chosen = torch.where(text < 0, mixture, torch.nn.functional.one_hot(text.clamp(min=0)[:, 0], 2).double())
    eps = (chosen * eps).sum(1, keepdim=True)
    said = eps if prediction == "epsilon" else eps - (x_t - sigma * eps) / alpha
    to_eps, _ = PREDICTIONS[prediction]
    return to_eps(said, x_t, alpha, sigma)


def distilled(kappa, cfg_on="both", fixed=1.0, steps=250, batch=128, per_sample=False, prediction="epsilon"):
    """Means and deviations of the student, [2] each. A score that cfg_on leaves out has the scale `fixed`."""
    random = torch.Generator().manual_seed(0)
    a = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([-0.5, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([a, b], lr=0.1, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    text = torch.arange(batch)[:, None] % 2
    null = torch.full_like(text, -1)
    for _ in range(steps):
        z, noise = torch.randn(2, batch, 1, generator=random, dtype=torch.float64)
        x0 = a[text] * z + b[text]
        scale = draw_kappa(kappa, random, batch if per_sample else 1).view(-1, 1)
        t = torch.randint(20, 981, (batch,), generator=random)
        alpha, sigma = (table[t][:, None] for table in SCHEDULES[prediction])
        with torch.no_grad():
            x_t = alpha * x0 + sigma * noise

            def teacher(*arguments):
                return perfect_eps(*arguments, MEANS, torch.full((2,), DEVIATION, dtype=torch.float64), prediction)

            def lora(*arguments):
                return perfect_eps(*arguments, b.detach(), a.detach(), prediction)

            kappa_teacher = scale if cfg_on in ("both", "teacher") else fixed
            kappa_lora = scale if cfg_on in ("both", "lora") else fixed
            eps_teacher = guided(teacher, x_t, t, Text(text), Text(null), kappa_teacher)
            eps_lora = guided(lora, x_t, t, Text(text), Text(null), kappa_lora)
        optimizer.zero_grad()
        vsd_loss(x0, eps_teacher, eps_lora, sigma_squared_weight(alpha, sigma, 1.0)).mean().backward()
        optimizer.step()
        schedule.step()
    return b.detach(), a.detach().abs()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kappa", [(1, 1), (4.5, 4.5), (2, 5), (1, 4), (0.5, 4), (0.5, 3)])
def test_student_reaches_the_teacher_under_every_law_of_kappa(kappa, per_sample):
    means, deviations = distilled(kappa, per_sample=per_sample)
    assert (means - MEANS).abs().max() < 0.01
    assert (deviations - DEVIATION).abs().max() < 0.01


@pytest.mark.parametrize("kappa", [(1, 1), (4.5, 4.5), (0.5, 4)])
def test_the_student_of_a_flow_model_reaches_it_too(kappa):
    means, deviations = distilled(kappa, prediction="flow-")
    assert (means - MEANS).abs().max() < 0.01
    assert (deviations - DEVIATION).abs().max() < 0.01


@pytest.mark.parametrize("kappa, beyond", [(2, 2.3), (4.5, 3)])
def test_guidance_on_the_teacher_alone_fails_visibly(kappa, beyond):
    means, deviations = distilled((kappa, kappa), cfg_on="teacher")
    assert means.abs().min() > beyond
    assert deviations.max() < 0.3


@pytest.mark.parametrize(
    "cfg_on, fixed, reached",
    [
        ("teacher", 4.5, 1.14),  # SwiftBrush's scale breaks Table 2's mixed cells, either way
        ("lora", 4.5, 2.93),
        ("teacher", 2.25, 2.05),  # the mean of the random range, which configs/ablations/table2_*.yaml have
        ("lora", 2.25, 1.96),
        ("teacher", 1.0, 2.76),  # the default of fixed_kappa, which is warned of
        ("none", 4.5, 2.0),
    ],
)
def test_the_mixed_cells_of_table_2_need_the_mean_of_the_random_scale(cfg_on, fixed, reached):
    means, _ = distilled((0.5, 4), cfg_on, fixed)
    assert means.sign().tolist() == [-1, 1] and (means.abs() - reached).abs().max() < 0.06
    assert (unequal_scales(cfg_on, (0.5, 4), fixed) is None) == (abs(reached - 2) < 0.06)
