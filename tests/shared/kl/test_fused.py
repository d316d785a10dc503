import functools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from shared.kl.discrete import js_from_logits, kl_from_logits
from shared.kl.fused import chunked_js, chunked_kl

INF = torch.inf
# name -> (chunked, the same by autograd on whole tensors)
PRECISE = {
    "kl": (chunked_kl, kl_from_logits),
    "js": (
        functools.partial(chunked_js, weight=0.3), functools.partial(js_from_logits, weight=0.3),
    ),
}  # fmt: skip
ALL = PRECISE | {"fast": (functools.partial(chunked_kl, precise=False), kl_from_logits)}


def logits(shape, scale=1.0, dtype=torch.float64, seed=0):
    """Teacher and student, ``scale`` apart."""
    rng = torch.Generator().manual_seed(seed)
    a = 3 * torch.randn(shape, generator=rng, dtype=torch.float64)
    b = a + scale * torch.randn(shape, generator=rng, dtype=torch.float64)
    return a.to(dtype), b.to(dtype)


def value_and_gradient(function, a, b, student, weights=None, **options):
    pair = [a.clone(), b.clone()]
    pair[student].requires_grad_()
    value = function(*pair, **options)
    weights = torch.ones_like(value) if weights is None else weights.to(value.dtype)
    finite = torch.where(value.isfinite(), value, 0.0)
    (gradient,) = torch.autograd.grad((finite * weights).sum(), pair[student])
    return value.detach(), gradient


def agree(name, a, b, student, rtol=1e-12, atol=1e-14, **options):
    """Chunked equals whole, value and gradient; the whole one in float64."""
    chunked, whole = ALL[name]
    weights = torch.linspace(0.1, 2, a[..., 0].numel()).view(a.shape[:-1])
    value, gradient = value_and_gradient(chunked, a, b, student, weights, **options)
    wide = (a.double(), b.double())
    expected, slope = value_and_gradient(whole, *wide, student, weights, **options)
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient.double(), slope, rtol=rtol, atol=atol)
    return value, gradient


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
    agree(name, a, b, student, rtol=1e-4 if name != "kl" else 2e-5, atol=2e-6)


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


EXCLUDED = [
    "both", "teacher", "student", "rows differ", "disjoint", "certain", "certain and unlikely",
    "padding of the teacher", "padding of the student", "one outlier", "certain and wrong", "wild",
    "offset", "offset and excluded",
]  # fmt: skip


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
    assert value.isfinite().tolist() == [True, name == "js", True]


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


@pytest.mark.parametrize(("scale", "rtol"), [(1.0, 2e-6), (1e-2, 1e-5), (1e-4, 1e-3)])
def test_a_small_kl_keeps_its_digits_at_the_size_of_a_vocabulary(scale, rtol):
    a, b = logits((4, 49_152), scale, torch.float32, seed=3)
    everything = kl_from_logits(a.double(), b.double())
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
    torch.testing.assert_close(chunked_js(a, b, 0.3), truth, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_never_negative_and_zero_for_equal_logits(name):
    for seed in range(20):
        a, b = logits((50, 40), 10.0 ** -(seed % 8), torch.float32, seed=seed)
        assert (ALL[name][0](a, b) >= 0).all()
        value, gradient = value_and_gradient(ALL[name][0], a, a, 1)
        assert value.max() < (1e-6 if name == "fast" else 1e-12)
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


def test_slices_are_right_where_they_are_not_written_in_place():
    a, b = logits((3, 5, 20))
    agree("kl", a[:, :-1], b[:, :-1], 1, rtol=1e-11)
