"""What becomes of the arguments: gradients written in place, one backward, bad ones named."""

import math

import pytest
import torch

from shared.kl.vocabulary.logits import chunked_js, chunked_kl
from tests.shared.kl.vocabulary.chunked_and_whole import ALL, agree, logits, value_and_gradient


def test_in_place_writes_the_gradient_over_the_student():
    for name, (chunked, whole) in ALL.items():
        for student, dtype in [(0, torch.float64), (1, torch.float64), (1, torch.bfloat16)]:
            a, b = logits((3, 5, 700), dtype=dtype)
            leaves = [a.clone(), b.clone()]
            leaves[student].requires_grad_()
            made = [x * 1 for x in leaves]
            value = chunked(*made, inplace=True, reduction="positionmean")
            assert not torch.equal(made[student], leaves[student]), name
            assert torch.equal(made[1 - student], leaves[1 - student])
            value.backward()
            _, slope = value_and_gradient(
                whole, a.double(), b.double(), student, reduction="positionmean"
            )
            gradient = leaves[student].grad.double()
            assert (gradient - slope).norm() < 4 * torch.finfo(dtype).eps ** 0.9 * slope.norm()


def test_in_place_is_noticed_by_an_operation_that_kept_the_logits():
    a, b = logits((3, 20))
    student = b.requires_grad_() * 1
    other = student.square().sum()  # keeps its input for the backward
    loss = chunked_kl(a, student, inplace=True).sum() + other
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_overwritten_before_the_backward_is_noticed():
    a, b = logits((3, 20))
    student = b.requires_grad_() * 1
    loss = chunked_kl(a, student, inplace=True).sum()
    with torch.no_grad():
        student.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_runs_once_and_its_gradient_is_a_constant():
    a, b = logits((3, 20))
    student = b.clone().requires_grad_()
    loss = 2 * chunked_kl(a, student, reduction="batchmean")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="no second backward"):
        loss.backward()
    scaled = chunked_kl(a, student) * student.detach()[:, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scaled.sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_arguments_are_left_alone_without_in_place_and_without_gradients():
    a, b = logits((3, 20))
    kept = a.clone(), b.clone()
    student = b.requires_grad_()
    chunked_kl(a, student).sum().backward()
    with torch.no_grad():
        value = chunked_kl(a, student * 1, inplace=True)
        both = chunked_kl(a.requires_grad_(), student)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])
    assert not value.requires_grad
    assert torch.equal(both, value)


def test_slices_are_right_where_they_are_not_written_in_place():
    a, b = logits((3, 5, 20))
    agree("kl", a[:, :-1], b[:, :-1], 1, rtol=1e-11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p_logits": torch.zeros(2, 3, requires_grad=True)}, "p_logits and q_logits both"),
        ({"p_logits": torch.zeros(3, 3)}, "same shape"),
        ({"p_logits": torch.zeros(2, 3, dtype=torch.int64)}, "p_logits must be a floating"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"mask": torch.ones(2)}, "mask must be bool"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask of shape"),
        ({"reduction": "mean"}, "reduction"),
        ({"inplace": True}, "q_logits is a leaf"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"p_logits": torch.zeros(2, 3), "q_logits": torch.zeros(2, 3, requires_grad=True)}
    for function in (chunked_kl, chunked_js):
        with pytest.raises(ValueError, match=message):
            function(**arguments | change)


def test_bad_shapes_and_weights_are_named():
    with pytest.raises(ValueError, match="no categories"):
        chunked_kl(torch.zeros(2, 0), torch.zeros(2, 0))
    with pytest.raises(ValueError, match="no categories"):
        chunked_kl(torch.zeros(()), torch.zeros(()))
    with pytest.raises(ValueError, match="weight"):
        chunked_js(torch.zeros(2, 3), torch.zeros(2, 3), 1.0)
    student = torch.zeros(2, 5, 3, requires_grad=True) * 1
    with pytest.raises(ValueError, match="cannot be viewed as rows"):
        chunked_kl(torch.zeros(2, 4, 3), student[:, :-1], inplace=True)
    assert math.isclose(chunked_kl(torch.zeros(3), torch.zeros(3)).item(), 0)
