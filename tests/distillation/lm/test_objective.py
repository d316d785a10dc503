"""Losses against their definitions, in chunks and whole, with their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.lm import objective
from distillation.lm.config import Config
from distillation.lm.data import Blocks
from distillation.lm.objective import POSITIONS, LazyLogits, Objective, TopK, chunked, full, topk
from distillation.lm.train import loss_sum
from shared.language_models.head import OutputHead

N, WIDTH, V = 2 * POSITIONS + 7, 12, 50
DIVERGENCES: tuple[Objective, ...] = ("forward", "reverse", "js", "skew")


def heads(seed: int = 0) -> tuple[LazyLogits, LazyLogits]:
    torch.manual_seed(seed)
    teacher = LazyLogits(torch.randn(N, WIDTH), OutputHead(torch.randn(V, WIDTH)))
    student = LazyLogits(torch.randn(N, WIDTH), OutputHead(torch.randn(V, WIDTH) * 0.5))
    student.hidden.requires_grad_()
    student.head.weight.requires_grad_()
    return teacher, student


def leaves(student: LazyLogits) -> list[Tensor]:
    return [student.hidden, student.head.weight]


def definition(
    name: Objective, teacher: LazyLogits, student: LazyLogits, t: float, skew: float
) -> Tensor:
    """From torch's own functions, in float64."""
    p, q = (
        torch.softmax(head.hidden.double() @ head.head.weight.double().T / t, -1)
        for head in (teacher, student)
    )

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum()

    m = (p + q) / 2
    return {
        "forward": lambda: kl(p, q),
        "reverse": lambda: kl(q, p),
        "js": lambda: (kl(p, m) + kl(q, m)) / 2,
        "skew": lambda: kl(p, skew * p + (1 - skew) * q),
    }[name]()


@pytest.mark.parametrize("compute", [full, chunked])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_values_and_gradients(name: Objective, temperature: float, compute: object) -> None:
    teacher, student = heads()
    expected = definition(name, teacher, student, temperature, 0.1)
    wanted = torch.autograd.grad(expected, leaves(student))
    value = compute(name, teacher, student, temperature, 0.1)  # type: ignore[operator]
    found = torch.autograd.grad(value, leaves(student))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_chunked_equals_full_per_position() -> None:
    teacher, student = heads(1)
    for name in DIVERGENCES:
        a, b = (f(name, teacher, student, 1.0, 0.1) / N for f in (full, chunked))
        assert abs(a - b) < 1e-5
        pairs = zip(
            torch.autograd.grad(a, leaves(student)),
            torch.autograd.grad(b, leaves(student)),
            strict=True,
        )
        assert all((x - y).abs().max() < 1e-5 for x, y in pairs)


def test_cross_entropy() -> None:
    _, student = heads()
    tokens = torch.randint(V, (N,))
    expected = F.cross_entropy(student.hidden @ student.head.weight.T, tokens, reduction="sum")
    value = objective.cross_entropy(student, tokens)
    assert torch.allclose(value, expected, rtol=1e-6)
    pairs = zip(
        torch.autograd.grad(value, leaves(student)),
        torch.autograd.grad(expected, leaves(student)),
        strict=True,
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_the_first_argument_of_forward_is_the_teacher() -> None:
    """KL(teacher || student) is infinite where the student excludes what the teacher does."""
    teacher = LazyLogits(
        torch.tensor([[0.0, 0.0]]), OutputHead(torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    )
    student = LazyLogits(
        torch.tensor([[40.0, 0.0]]), OutputHead(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    )
    assert chunked("forward", teacher, student, 1.0, 0.1) > 35
    assert chunked("reverse", teacher, student, 1.0, 0.1) < 0.7


@pytest.mark.parametrize("k", [1, 5, V])
def test_topk_with_rest_is_never_above_the_full_one(k: int) -> None:
    teacher, student = heads(2)
    whole = chunked("forward", teacher, student, 1.0, 0.1).item()
    known = TopK(*teacher.logits().log_softmax(-1).topk(k, dim=-1))
    value = topk(known, student, 1.0).item()
    assert value <= whole * (1 + 1e-6)
    assert (value == pytest.approx(whole, rel=1e-5)) == (k == V)
    # and by its definition: a class for all the rest
    p, q = (head.logits().double().softmax(-1) for head in heads(2))
    p_known, q_known = p.gather(-1, known.tokens), q.gather(-1, known.tokens)
    terms = (p_known * (p_known / q_known).log()).sum(-1)
    p_rest, q_rest = 1 - p_known.sum(-1), 1 - q_known.sum(-1)
    if k < V:
        terms = terms + p_rest * (p_rest / q_rest).log()
    assert value == pytest.approx(terms.sum().item(), rel=1e-4)


def test_gradients_keep_their_size_over_temperatures() -> None:
    """The purpose of the factor T^2 of the loss that is trained."""
    torch.manual_seed(0)
    teacher = LazyLogits(
        torch.randn(1, N, WIDTH), OutputHead(torch.randn(V, WIDTH) * 0.01)
    )  # small logits
    hidden = torch.randn(1, N, WIDTH, requires_grad=True)
    student = LazyLogits(hidden, OutputHead(teacher.head.weight.flip(0)))
    blocks = Blocks(torch.zeros(1, N + 1).long(), torch.ones(1, N).bool(), torch.zeros(1))
    sizes = []
    for t in (1.0, 4.0, 16.0):
        value = loss_sum(Config(temperature=t), student, teacher, blocks)
        expected = t**2 * definition("forward", teacher, student, t, 0.1)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        sizes.append(torch.autograd.grad(value, hidden)[0].norm().item())
    assert max(sizes) < 1.05 * min(sizes)
