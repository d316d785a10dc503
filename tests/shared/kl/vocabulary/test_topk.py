import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr

from shared.kl.categorical.discrete import kl_from_logits
from shared.kl.vocabulary.topk import kl_topk

INF = torch.inf


def logits(shape, scale=1.0, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    a = 3 * torch.randn(shape, generator=rng, dtype=torch.float64)
    b = a + scale * torch.randn(shape, generator=rng, dtype=torch.float64)
    return a.to(dtype), b.to(dtype)


def top(a, k, temperature=1.0):
    return torch.log_softmax(a / temperature, -1).topk(k)


def oracle(a, b, k, temperature=1.0):
    """scipy on the k + 1 merged probabilities."""
    p, q = ((x / temperature).double().softmax(-1).numpy() for x in (a, b))
    value = []
    for row_p, row_q, known in zip(p, q, a.topk(k).indices.numpy(), strict=True):
        merged = [[*row[known], 1 - row[known].sum()] for row in (row_p, row_q)]
        value.append(rel_entr(*merged).sum())
    return torch.tensor(value)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("k", [1, 5, 39])
def test_the_kl_of_the_merged_distributions(k, temperature):
    a, b = logits((6, 40))
    value = kl_topk(*top(a, k, temperature), b, temperature=temperature, validate=True)
    torch.testing.assert_close(value, oracle(a, b, k, temperature), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("scale", [3.0, 0.1, 1e-4])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 3e-3)])
def test_the_whole_vocabulary_gives_the_whole_kl(dtype, rtol, scale):
    a, b = logits((6, 40), scale)
    student = b.to(dtype).requires_grad_()
    value = kl_topk(*top(a.to(dtype), 40), student)
    whole = b.clone().requires_grad_()
    expected = kl_from_logits(a, whole)
    atol = 0 if dtype == torch.float64 else 1e-10
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=atol)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    (slope,) = torch.autograd.grad(expected.sum(), whole)
    torch.testing.assert_close(gradient.double(), slope, rtol=rtol, atol=3e-7)


@given(
    rows=st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=12),
    k=st.integers(1, 12),
)
def test_never_above_the_whole_kl_and_never_negative(rows, k):
    a, b = torch.tensor(rows, dtype=torch.float64).T
    value = kl_topk(*top(a, min(k, len(a))), b)
    assert 0 <= value <= kl_from_logits(a, b) * (1 + 1e-9) + 1e-12


def test_it_grows_with_k_and_single_precision_keeps_the_bound():
    a, b = logits((50, 5000), 0.5)
    whole = kl_from_logits(a, b)
    last = torch.zeros(50, dtype=torch.float64)
    for k in (1, 10, 100, 1000, 4999, 5000):
        value = kl_topk(*top(a, k), b)
        assert (value >= last * (1 - 1e-9)).all()
        single = kl_topk(*top(a.float(), k), b.float())
        assert (single <= whole * (1 + 1e-4)).all()
        last = value
    torch.testing.assert_close(last, whole, rtol=1e-11, atol=0)


def test_a_small_kl_in_float32_is_not_negative():
    a, b = logits((20, 5000), 1e-4, torch.float32)
    for k in (10, 5000):
        value = kl_topk(*top(a, k), b)
        assert (value >= 0).all()
        assert (value < 1e-7).all()


def test_the_gradient_is_that_of_the_definition():
    a, b = logits((3, 8))
    log_p, indices = top(a, 3)
    assert torch.autograd.gradcheck(lambda q: kl_topk(log_p, indices, q), b.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda q: kl_topk(log_p, indices, q), b)
    # to the student: q - p on known categories; the rest share p_rest in proportion to q
    (gradient,) = torch.autograd.grad(kl_topk(log_p, indices, b).sum(), b)
    q, p = b.detach().softmax(-1), a.softmax(-1)
    known = torch.zeros(3, 8, dtype=torch.bool).scatter(-1, indices, True)
    rest_p, rest_q = ((x * ~known).sum(-1, keepdim=True) for x in (p, q))
    expected = q - torch.where(known, p, q * rest_p / rest_q)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_excluded_categories():
    a, b = logits((4, 10))
    log_p, indices = top(a, 3)
    b[0] = b[0].index_fill(0, indices[0, :1], -INF)  # a category of p is gone
    others = torch.ones(10, dtype=torch.bool).index_fill(0, indices[1], False)
    b[1, others] = -INF  # p's rest is gone
    log_p[2, 2] = -INF  # not in p; the rest has its mass
    student = b.requires_grad_()
    value = kl_topk(log_p, indices, student)
    assert value.isinf().tolist() == [True, True, False, False]
    (gradient,) = torch.autograd.grad(value[2:].sum(), student)
    assert gradient.isfinite().all()
    # Nothing is left over for p: q's rest costs what p's categories miss.
    certain = torch.tensor([[0.0]], dtype=torch.float64)
    q = torch.tensor([[1.0, 2.0, -INF]], dtype=torch.float64, requires_grad=True)
    value = kl_topk(certain.requires_grad_(), torch.tensor([[1]]), q)
    assert math.isclose(value.item(), math.log1p(math.exp(-1)), rel_tol=1e-12)
    value.sum().backward()
    assert q.grad.isfinite().all()
    assert certain.grad.isfinite().all()


def test_masked_positions_and_reductions():
    a, b = logits((4, 10))
    log_p, indices = top(a, 3)
    clean = kl_topk(log_p, indices, b)
    mask = torch.tensor([True, False, True, False])
    log_p[1], b[1], b[3], indices[3] = torch.nan, torch.nan, INF, 99
    student = b.requires_grad_()
    value = kl_topk(log_p, indices, student, mask=mask, validate=True)
    torch.testing.assert_close(value.detach(), torch.where(mask, clean, 0), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert (gradient[~mask] == 0).all()
    mean = kl_topk(log_p, indices, student, mask=mask, reduction="positionmean")
    torch.testing.assert_close(mean.item(), clean[mask].mean().item())


def test_half_precision_is_computed_in_float32():
    a, b = logits((4, 200), dtype=torch.bfloat16)
    log_p, indices = top(a.float(), 20)
    value = kl_topk(log_p, indices, b)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), oracle(a, b, 20), rtol=1e-4, atol=1e-6)


GOOD = {
    "p_log_probs": torch.tensor([[-1.0, -2.0]]),
    "indices": torch.tensor([[0, 2]]),
    "q_logits": torch.zeros(1, 4),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.tensor([[0.0, 1.0]])}, "indices must be int64"),
        ({"indices": torch.tensor([[0]])}, "must agree"),
        ({"q_logits": torch.zeros(2, 4)}, "must agree"),
        ({"q_logits": torch.zeros(4)}, "number of dimensions"),
        ({"q_logits": torch.zeros(1, 1)}, "k must lie"),
        ({"q_logits": torch.zeros(1, 4, dtype=torch.int64)}, "q_logits must be a floating"),
        ({"temperature": 0.0}, "temperature"),
        ({"reduction": "mean"}, "reduction"),
        ({"mask": torch.ones(1)}, "mask must be bool"),
        ({"p_log_probs": torch.tensor([[0.0, -0.1]])}, "sum to"),
        ({"p_log_probs": torch.tensor([[torch.nan, -0.1]])}, "sum to"),
        ({"indices": torch.tensor([[0, 4]])}, "indices must lie"),
        ({"indices": torch.tensor([[1, 1]])}, "repeat"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        kl_topk(**GOOD | {"validate": True} | change)
