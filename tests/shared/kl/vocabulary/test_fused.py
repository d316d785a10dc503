"""Chunks equal the whole, value and gradient: extreme categories, masks, digits, half precision."""

import mpmath
import pytest
import torch
import torch.nn.functional as F

from shared.kl.categorical.discrete import kl_from_logits
from shared.kl.vocabulary.logits import chunked_js, chunked_kl
from tests.shared.kl.vocabulary.chunked_and_whole import (
    ALL,
    agree,
    logits,
    value_and_gradient,
    whole_kl,
)

INF = torch.inf


@pytest.mark.parametrize("student", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", ALL)
def test_chunks_equal_the_whole_in_value_and_gradient(name, student, temperature):
    # 60000 categories: chunks of four rows, the last one shorter; 50: all rows in one chunk.
    for shape in [(2, 3, 50), (6, 60_000)]:
        a, b = logits(shape)
        agree(name, a, b, student, rtol=1e-9, temperature=temperature)


@pytest.mark.parametrize("student", [0, 1])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [6.0, 1.0, 0.1])
def test_float32_is_right_to_float32(name, scale, student):
    a, b = logits((5, 3000), scale, torch.float32)
    agree(name, a, b, student, rtol=5e-6, atol=2e-7)


def exclude(a, b, case):
    match case:
        case "both":
            a[:, ::3] = b[:, ::3] = -INF
        case "teacher":
            a[:, ::3] = -INF
        case "student":
            b[:, ::3] = -INF
        case "rows differ":
            a[0, ::3] = b[1, ::4] = a[2, ::2] = b[2, 1::4] = -INF
            a[3, :5] = b[3, :5] = -INF
        case "disjoint":
            a[:, ::2] = b[:, 1::2] = -INF
        case "certain":
            a[:, 1:] = -INF
        case "certain and unlikely":
            a[:, 1:] = -INF
            b[:, 0] = b[:, 1:].max() - 20
        case "padding of the teacher":
            a[:, 5:9] = -1e4
        case "padding of the student":
            b[:, 5:9] = -1e4
        case "one outlier":
            a[:, 3], b[:, 3] = -80, -12
        case "certain and wrong":
            a[:, 4], b[:, 3] = 300, 200
        case "wild":
            a *= 100
            b *= -100
        case "offset":
            b += 200
        case "offset and excluded":
            b += 200
            a[:, ::3] = b[:, 1::3] = -INF
    return a, b


EXCLUDED = (
    "both, teacher, student, rows differ, disjoint, certain, certain and unlikely, "
    "padding of the teacher, padding of the student, one outlier, certain and wrong, wild, "
    "offset, offset and excluded"
).split(", ")


@pytest.mark.parametrize("student", [0, 1])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", EXCLUDED)
def test_excluded_and_extreme_categories(case, name, student):
    a, b = exclude(*logits((6, 40)), case)
    agree(name, a, b, student, rtol=1e-9, atol=1e-12, temperature=1.7)
    atol = 3e-4 if case == "wild" else 2e-5  # the last digit of a KL of 1000 nats
    single = (a.float(), b.float())
    _, gradient = agree(name, *single, student, rtol=1e-4, atol=atol, temperature=1.7)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_infinite_exactly_where_the_second_excludes_what_the_first_does_not(name):
    a, b = logits((3, 10))
    b[1, 4] = -INF
    value = ALL[name][0](a, b)
    assert value.isfinite().tolist() == [True, name in ("js", "skew"), True]


@pytest.mark.parametrize("name", ALL)
def test_nan_stays_in_its_row(name):
    a, b = logits((4, 30))
    clean = ALL[name][0](a, b)
    a[1, 3] = b[2, 5] = torch.nan
    value, gradient = value_and_gradient(ALL[name][0], a, b, 1)
    assert value.isnan().tolist() == [False, True, True, False]
    torch.testing.assert_close(value[[0, 3]], clean[[0, 3]], rtol=1e-12, atol=0)
    assert gradient[[0, 3]].isfinite().all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_masked_rows_are_not_read_and_get_no_gradient(name, inplace):
    a, b = logits((3, 4, 60))
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
    a[~mask], b[~mask] = torch.nan, INF
    leaf = b.clone().requires_grad_()
    student = leaf * 1
    value = ALL[name][0](a, student, mask=mask, inplace=inplace)
    (value * torch.arange(12).view(3, 4)).sum().backward()
    weights = torch.arange(12.0, dtype=torch.float64).view(3, 4)[mask]
    expected, slope = value_and_gradient(ALL[name][1], a[mask], b[mask], 1, weights)
    torch.testing.assert_close(value.detach()[mask], expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(leaf.grad[mask], slope, rtol=1e-12, atol=1e-14)
    assert (value[~mask] == 0).all()
    assert (leaf.grad[~mask] == 0).all()


def test_reductions_of_no_position_are_zero_with_a_gradient_of_zero():
    a, b = logits((2, 3, 20))
    for reduction in ("sum", "batchmean", "positionmean"):
        student = b.clone().requires_grad_()
        mask = torch.zeros(2, 3, dtype=torch.bool)
        value = chunked_kl(a, student, mask=mask, reduction=reduction)
        value.backward()
        assert value.item() == 0
        assert (student.grad == 0).all()


def test_empty_batches():
    a, b = torch.empty(0, 20), torch.empty(0, 20, requires_grad=True)
    value = chunked_kl(a, b, reduction="sum")
    value.backward()
    assert value.item() == 0
    assert b.grad.shape == (0, 20)


@pytest.mark.parametrize("reduction", ["sum", "batchmean", "positionmean"])
def test_reductions(reduction):
    a, b = logits((2, 3, 20))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    for student in (0, 1):
        agree("kl", a, b, student, mask=mask, reduction="none")
        options = {"mask": mask, "reduction": reduction}
        value, gradient = value_and_gradient(chunked_kl, a, b, student, **options)
        expected, slope = value_and_gradient(kl_from_logits, a, b, student, **options)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-15)


def exact(a, b, weight=None):
    """30 digits, from the definition, of one row of float32 logits."""
    with mpmath.workdps(30):

        def softmax(row):
            e = [mpmath.exp(x) for x in row.double().tolist()]
            total = mpmath.fsum(e)
            return [x / total for x in e]

        p, q = softmax(a), softmax(b)
        if weight is None:
            return float(mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True)))
        m = [weight * x + (1 - weight) * y for x, y in zip(p, q, strict=True)]
        to_m = [
            mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(s, m, strict=True)) for s in (p, q)
        ]
        return float(weight * to_m[0] + (1 - weight) * to_m[1])


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_a_small_kl_keeps_its_digits_at_the_size_of_a_vocabulary(scale):
    rtol = 1e-6
    a, b = logits((4, 49_152), scale, torch.float32, seed=3)
    everything = whole_kl(a.double(), b.double())
    torch.testing.assert_close(chunked_kl(a, b).double(), everything, rtol=rtol, atol=0)
    value, gradient = value_and_gradient(chunked_kl, a, b, 1)
    assert (value >= 0).all()
    slope = b.double().softmax(-1) - a.double().softmax(-1)
    assert (gradient - slope).norm() < 1e-5 * slope.norm()
    if scale == 1e-4:
        truth = exact(a[0], b[0])
        assert 1e-9 < truth < 1e-8
        assert abs(chunked_kl(a, b)[0].item() / truth - 1) < rtol
        naive = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none")
        assert ((naive.sum(-1) / everything - 1).abs() > 0.1).any()


def test_a_small_js_keeps_its_digits():
    a, b = logits((2, 5000), 1e-3, torch.float32, seed=4)
    truth = torch.tensor([exact(x, y, 0.3) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(chunked_js(a, b, 0.3), truth, rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_never_negative_and_zero_for_equal_logits(name):
    for seed in range(20):
        a, b = logits((50, 40), 10.0 ** -(seed % 8), torch.float32, seed=seed)
        assert (ALL[name][0](a, b) >= 0).all()
        value, gradient = value_and_gradient(ALL[name][0], a, a, 1)
        assert value.max() < 1e-12
        assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_computed_in_float32(name, dtype):
    a, b = logits((7, 2000), 0.3, dtype)
    value, gradient = value_and_gradient(ALL[name][0], a, b, 1)
    expected, slope = value_and_gradient(ALL[name][1], a.double(), b.double(), 1)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), expected, rtol=5e-5, atol=2e-6)
    assert (gradient.double() - slope).norm() < 2 * torch.finfo(dtype).eps * slope.norm()
    mixed = ALL[name][0](a.double(), b)  # the teacher's type may differ
    torch.testing.assert_close(mixed, expected, rtol=1e-8, atol=1e-12)
