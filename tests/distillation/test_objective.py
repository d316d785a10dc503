import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from distillation import objective
from distillation.train import distillation_loss

BATCH, CLASSES = 6, 5
LIMITS = {"forward": 1.0, "reverse": 1.0, "js": 0.25, "skew": 0.81, "decoupled": 1.0}
"""How large each divergence is against KL where both distributions nearly agree: all are half the
chi-square distance there, times w (1 - w) for Jensen-Shannon and (1 - share)^2 for the skew KL."""


@pytest.fixture
def example():
    rng = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(BATCH, CLASSES, generator=rng, dtype=torch.float64)
    student = 3 * torch.randn(BATCH, CLASSES, generator=rng, dtype=torch.float64)
    labels = torch.randint(CLASSES, (BATCH,), generator=rng)
    return teacher, student.requires_grad_(), labels


def divergence(kind, teacher, student, labels, temperature):
    if kind == "skew":
        return objective.skew(teacher, student, temperature, 0.1)
    if kind == "decoupled":
        target, others = objective.decoupled(teacher, student, labels, temperature)
        p = (teacher / temperature).softmax(-1).gather(1, labels[:, None])[:, 0]
        return target + (1 - p) * others
    return getattr(objective, kind)(teacher, student, temperature)


def gradient(kind, example, temperature):
    teacher, student, labels = example
    d = divergence(kind, teacher, student, labels, temperature)
    loss = distillation_loss(
        d, objective.cross_entropy(student, labels), temperature=temperature, alpha=1.0
    )
    return torch.autograd.grad(loss.sum(), student)[0]


def test_alpha_0_is_cross_entropy(example):
    teacher, student, labels = example
    d = objective.forward(teacher, student, 20.0)
    loss = distillation_loss(
        d, objective.cross_entropy(student, labels), temperature=20.0, alpha=0.0
    )
    expected = -Categorical(logits=student).log_prob(labels)
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert torch.allclose(objective.cross_entropy(student, labels), expected, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_the_loss_is_the_papers(example, alpha, temperature):
    teacher, student, labels = example
    p, q = (Categorical(logits=logits / temperature) for logits in (teacher, student))
    expected = alpha * temperature**2 * kl_divergence(p, q) + (1 - alpha) * F.cross_entropy(
        student, labels, reduction="none"
    )
    d = objective.forward(teacher, student, temperature)
    loss = distillation_loss(
        d, objective.cross_entropy(student, labels), temperature=temperature, alpha=alpha
    )
    assert torch.allclose(loss, expected, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergences_from_torch_distributions(example, temperature):
    teacher, student, _ = example
    p, q = (Categorical(logits=logits / temperature) for logits in (teacher, student))
    middle = Categorical(probs=(p.probs + q.probs) / 2)
    mixture = Categorical(probs=0.1 * p.probs + 0.9 * q.probs)
    for ours, theirs in (
        (objective.forward(teacher, student, temperature), kl_divergence(p, q)),
        (objective.reverse(teacher, student, temperature), kl_divergence(q, p)),
        (
            objective.js(teacher, student, temperature),
            (kl_divergence(p, middle) + kl_divergence(q, middle)) / 2,
        ),
        (objective.skew(teacher, student, temperature, 0.1), kl_divergence(p, mixture)),
    ):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_decoupled_sums_to_kl(example, temperature):
    teacher, student, labels = example
    whole = kl_divergence(
        *(Categorical(logits=logits / temperature) for logits in (teacher, student))
    )
    assert torch.allclose(
        divergence("decoupled", teacher, student, labels, temperature), whole, rtol=1e-10
    )


def test_decoupled_parts_by_hand(example):
    teacher, student, labels = example
    target, others = objective.decoupled(teacher, student, labels, 2.0)
    p, q = ((logits / 2).softmax(-1) for logits in (teacher, student))
    for i, label in enumerate(labels.tolist()):
        rest = [k for k in range(CLASSES) if k != label]
        a, b = p[i, label], q[i, label]
        pair = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
        wrong = sum(
            p[i, k] / (1 - a) * (p[i, k] / (1 - a) / (q[i, k] / (1 - b))).log() for k in rest
        )
        assert torch.allclose(target[i], pair, rtol=1e-9)
        assert torch.allclose(others[i], wrong, rtol=1e-9)


@pytest.mark.parametrize("kind", LIMITS)
def test_gradients(kind, example):
    teacher, student, labels = example
    assert torch.autograd.gradcheck(lambda s: divergence(kind, teacher, s, labels, 3.0), student)


@pytest.mark.parametrize("kind", LIMITS)
def test_the_high_temperature_limit_is_logit_matching(kind, example):
    """T^2 D_T has gradient (z_i - v_i) / N for logits of mean zero: Hinton et al. 2015, eq. 4."""
    teacher, student, _ = example
    z, v = (
        logits.detach() - logits.detach().mean(-1, keepdim=True) for logits in (student, teacher)
    )
    expected = LIMITS[kind] * (z - v) / CLASSES
    errors = [(gradient(kind, example, t) - expected).abs().max() for t in (1e2, 1e3, 1e4)]
    assert errors[-1] < 1e-3 * expected.abs().max()
    for larger, smaller in itertools.pairwise(errors):  # the next term of the expansion is 1 / T
        assert 5 < larger / smaller < 20


@pytest.mark.parametrize("kind", LIMITS)
def test_the_gradient_keeps_its_size_over_temperature(kind, example):
    sizes = [gradient(kind, example, t).norm().item() for t in (10.0, 20.0, 40.0, 80.0)]
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.parametrize("kind", LIMITS)
def test_nothing_to_learn_from_an_equal(kind, example):
    teacher, _, labels = example
    own = teacher.clone().requires_grad_()
    d = divergence(kind, teacher, own, labels, 4.0)
    assert d.abs().max() < 1e-12
    assert torch.autograd.grad(d.sum(), own)[0].abs().max() < 1e-12
