"""Zero probabilities, logits of -inf, masks and supports, near-equality, and bad arguments.

The cases in which ``F.kl_div`` and ``torch.distributions`` go wrong, with value and gradient.
"""

import math

import pytest
import torch

from shared.kl.categorical.discrete import (
    cross_entropy_from_logits,
    cross_entropy_from_probs,
    entropy_from_logits,
    entropy_from_probs,
    jeffreys_from_logits,
    jeffreys_from_probs,
    js_distance_from_logits,
    js_distance_from_probs,
    js_from_logits,
    js_from_probs,
    kl_from_logits,
    kl_from_probs,
)

INF = math.inf
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FROM_LOGITS = [
    kl_from_logits,
    js_from_logits,
    js_distance_from_logits,
    jeffreys_from_logits,
    cross_entropy_from_logits,
]
FROM_PROBS = [
    kl_from_probs,
    js_from_probs,
    js_distance_from_probs,
    jeffreys_from_probs,
    cross_entropy_from_probs,
]


def graded(function, *rows, dtype=torch.float32, **options):
    """The value and the gradients to each argument, which must not be NaN."""
    inputs = [torch.tensor(row, dtype=dtype).requires_grad_() for row in rows]
    value = function(*inputs, **options)
    gradients = torch.autograd.grad(value.sum(), inputs)
    assert not value.isnan().any()
    for gradient in gradients:
        assert gradient.isfinite().all(), gradients
    return value, gradients


LSE = math.log(2 + math.exp(-1))  # of (0, 0, -1)
LOGIT_CASES = [  # p's logits, q's logits, D(p || q)
    ([0.0, 0.0], [0.0, -200.0], 99.30685281944005),
    ([0.0, 0.0], [0.0, 0.0], 0.0),
    ([0.0, -INF], [0.0, -INF], 0.0),
    ([0.0, -INF, 1.0], [1.0, -INF, 0.0], math.tanh(0.5)),  # both masked
    ([0.0, -INF, 0.0], [0.0, -1.0, 0.0], LSE - math.log(2)),  # p alone masked
    ([-INF, -INF, 0.0], [0.0, -1.0, 0.0], LSE),  # p certain: -log q
    ([0.0, 0.0], [0.0, -INF], INF),
    ([0.0, -200.0], [0.0, -INF], INF),  # p is 0 in float32, and still q misses a part of it
    ([0.0, -200.0, 1.0], [0.0, 0.0, 1.0], math.log1p(1 / (1 + math.e))),
    ([0.0, -4096.0], [-4096.0, 0.0], 4096.0),
    ([0.0, 30.0], [30.0, 0.0], 30 * math.tanh(15)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("p", "q", "truth"), LOGIT_CASES)
def test_value_and_gradient_at_extreme_logits(p, q, truth, dtype):
    value, (to_p, to_q) = graded(kl_from_logits, p, q, dtype=dtype)
    assert value.item() == pytest.approx(truth, rel=1e-12 if dtype == torch.float64 else 2e-6)
    if truth < INF:
        a, b = (torch.tensor(x, dtype=torch.float64) for x in (p, q))
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 4e-3)
        torch.testing.assert_close(
            to_q.double(), b.softmax(-1) - a.softmax(-1), rtol=tolerance, atol=tolerance
        )
        assert abs(to_p.sum().item()) <= tolerance * max(1, to_p.abs().max().item())


@pytest.mark.parametrize("function", FROM_LOGITS)
@pytest.mark.parametrize(("p", "q", "truth"), LOGIT_CASES)
def test_no_nan_in_any_divergence_of_logits(function, p, q, truth):  # noqa: ARG001
    graded(function, p, q)
    graded(function, q, p)


PROB_CASES = [  # p, q, D(p || q)
    ([0.5, 0.5], [0.5, 0.5], 0.0),
    ([0.5, 0.5], [1.0, 0.0], INF),
    ([1.0, 0.0], [0.5, 0.5], math.log(2)),
    ([0.0, 0.0, 1.0], [0.25, 0.25, 0.5], math.log(2)),  # one-hot
    ([0.0, 1.0], [0.0, 1.0], 0.0),
    ([1.0, 0.0], [0.0, 1.0], INF),
    ([0.5, 0.5], [1 - 1e-12, 1e-12], 0.5 * math.log(0.25e12)),
    ([0.5, 0.5], [1.0, 1e-30], 0.5 * math.log(0.25e30)),
]


@pytest.mark.parametrize("function", FROM_PROBS)
@pytest.mark.parametrize(("p", "q", "truth"), PROB_CASES)
def test_value_and_gradient_at_zero_probabilities(function, p, q, truth):
    value, _ = graded(function, p, q)
    graded(function, q, p)
    if function is kl_from_probs:
        assert value.item() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("function", [entropy_from_logits, entropy_from_probs])
def test_entropy_of_a_certain_outcome(function):
    row = [-INF, 0.0] if function is entropy_from_logits else [0.0, 1.0]
    value, _ = graded(function, row)
    assert value.item() == 0


def test_target_that_underflows_has_a_gradient():
    """softmax([0, -200, 1]) is 0 in the middle: F.kl_div gives nan to all three logits."""
    a = torch.tensor([0.0, -200.0, 1.0], requires_grad=True)
    q = torch.tensor([0.2, 0.3, 0.5])
    (to_a,) = torch.autograd.grad(kl_from_probs(a.softmax(-1), q), a)
    wide = a.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(kl_from_logits(wide, q.double().log()), wide)
    torch.testing.assert_close(to_a.double(), truth, rtol=1e-5, atol=1e-7)


def test_the_first_argument_is_p_and_no_reduction_is_hidden():
    p = torch.tensor([[0.5, 0.5]] * 6).expand(4, 6, 2)
    q = torch.tensor([0.9, 0.1])
    assert kl_from_probs(p, q).shape == (4, 6)
    torch.testing.assert_close(kl_from_probs(p, q), torch.full((4, 6), 0.5108256))
    torch.testing.assert_close(kl_from_probs(q, p), torch.full((4, 6), 0.3680642))


def test_disjoint_supports_keep_jensen_shannon_finite():
    p, q = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0.5, 0.5])
    assert kl_from_probs(p, q).item() == kl_from_probs(q, p).item() == INF
    assert js_from_probs(p, q, unit="bits").item() == pytest.approx(1, rel=1e-6)
    assert js_from_logits(p.log(), q.log(), unit="bits").item() == pytest.approx(1, rel=1e-6)


def test_jensen_shannon_where_one_misses_a_part_of_the_other():
    p = torch.tensor([0.2, 0.5, 0.0, 0.3], dtype=torch.float64)
    q = torch.tensor([0.1, 0.0, 0.3, 0.6], dtype=torch.float64)
    m = (p + q) / 2
    truth = 0.5 * (torch.special.xlogy(p, p / m) + torch.special.xlogy(q, q / m)).sum()
    torch.testing.assert_close(js_from_probs(p, q), truth)
    torch.testing.assert_close(js_from_logits(p.log() + 1, q.log() - 1), truth)


def test_one_hot_under_a_model_and_the_model_under_a_one_hot():
    label, model = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.2, 0.5, 0.3])
    assert kl_from_probs(label, model).item() == pytest.approx(math.log(2), rel=1e-6)
    assert kl_from_probs(model, label).item() == INF


@pytest.mark.parametrize("function", FROM_LOGITS)
def test_support_is_the_same_as_deleting_categories(function):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    support = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    torch.testing.assert_close(
        function(a, b, support=support), function(a[:, support], b[:, support])
    )
    a[:, 1], b[:, 4] = torch.nan, torch.inf  # what is not allowed is not read
    rows = a.clone().requires_grad_()
    value = function(rows, b, support=support)
    torch.testing.assert_close(value, function(a[:, support], b[:, support]))
    (gradient,) = torch.autograd.grad(value.sum(), rows)
    assert gradient.isfinite().all()
    assert (gradient[:, ~support] == 0).all()


def test_support_of_probabilities_drops_and_does_not_renormalise():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    support = torch.tensor([True, True, False])
    value = kl_from_probs(p, q, support=support)
    torch.testing.assert_close(
        value, 0.5 * torch.tensor(2.0).log() - 0.25 * torch.tensor(2.0).log()
    )
    with pytest.raises(ValueError, match="p is not normalised"):
        kl_from_probs(p, q, support=support, validate=True)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "positionmean"])
@pytest.mark.parametrize("function", FROM_LOGITS)
def test_masked_positions_are_never_read(function, reduction):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 3, 8, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    per_position = function(a, b)
    truth = {
        "none": torch.where(mask, per_position, 0.0),
        "sum": per_position[mask].sum(),
        "batchmean": per_position[mask].sum() / 4,
        "positionmean": per_position[mask].mean(),
    }[reduction]
    a[~mask], b[2] = torch.nan, -torch.inf
    a.requires_grad_()
    value = function(a, b, mask=mask, reduction=reduction)
    torch.testing.assert_close(value, truth)
    (gradient,) = torch.autograd.grad(value.sum(), a)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()


def test_nothing_counts():
    a = torch.randn(2, 3, requires_grad=True)
    value = kl_from_logits(
        a, a.detach() + 1, mask=torch.tensor([False, False]), reduction="positionmean"
    )
    assert value.item() == 0
    value.backward()
    assert (a.grad == 0).all()


@pytest.mark.parametrize(("logits", "tolerance"), [(True, 2e-5), (False, 1e-3)])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3, 1e-4])
def test_small_divergences_over_a_large_vocabulary_in_float32(spread, logits, tolerance):
    """F.kl_div is 56 % wrong at 5e-7 nats and noise at 5e-9; no value here is negative."""
    generator = torch.Generator().manual_seed(0)
    a = 3 * torch.randn(8, 49152, generator=generator)
    b = a + spread * torch.randn(8, 49152, generator=generator)
    if logits:
        log_p, log_q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        value = kl_from_logits(a, b)
    else:
        p, q = a.double().softmax(-1).float(), b.double().softmax(-1).float()
        value = kl_from_probs(p, q)
        log_p, log_q = p.double().log(), q.double().log()
    truth = (log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()).sum(-1)
    assert ((value - truth) / truth).abs().max() < tolerance
    assert (value >= 0).all()


@pytest.mark.parametrize(("to_p", "to_q"), [(1e3, 0.0), (1e4, 1e4), (0.0, -1e4)])
def test_a_shift_of_all_logits_changes_nothing_in_float32(to_p, to_q):
    """A probability that is right to 1e-7 and not normalised, times a shift of 1e4, is not."""
    generator = torch.Generator().manual_seed(0)
    a = 3 * torch.randn(4, 49152, generator=generator)
    b = a + 0.1 * torch.randn(4, 49152, generator=generator)
    a, b = a + to_p, b + to_q
    truth = kl_from_logits(a.double(), b.double())
    assert ((kl_from_logits(a, b) - truth) / truth).abs().max() < 1e-6
    far, near = torch.tensor([1e6, 1e6 + 1]), torch.tensor([0.0, 1.0])
    assert kl_from_logits(far, near) < 1e-14
    truth = entropy_from_logits(near.double()).item()
    assert entropy_from_logits(far).item() == pytest.approx(truth, rel=1e-6)


def test_the_least_number_as_a_mask_gives_no_nan():
    """Some write it instead of -inf. Then q has no probability and is still not infinite."""
    least = torch.finfo(torch.float32).min
    for p, q in (
        ([least, 0, 1], [0, 1, 2]),
        ([0, 1, 2], [least, 0, 1]),
        ([least, 1, 2], [1, 0, least]),
    ):
        for function in FROM_LOGITS:
            value, _ = graded(function, p, q)
            assert value >= 0
    masked, _ = graded(kl_from_logits, [least, 0, 1], [least, 2, 2])
    dropped, _ = graded(kl_from_logits, [-INF, 0, 1], [-INF, 2, 2])
    assert masked.item() == pytest.approx(dropped.item(), rel=1e-6)


def test_gradient_of_a_small_divergence_in_float32():
    generator = torch.Generator().manual_seed(0)
    a = 3 * torch.randn(4, 49152, generator=generator)
    b = (a + 1e-4 * torch.randn(4, 49152, generator=generator)).requires_grad_()
    (gradient,) = torch.autograd.grad(kl_from_logits(a, b).sum(), b)
    truth = b.detach().double().softmax(-1) - a.double().softmax(-1)
    assert (gradient - truth).norm() / truth.norm() < 1e-5


ROW = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_from_probs(torch.tensor([1, 0]), ROW), "p must be a floating-point tensor"),
        (
            lambda: kl_from_probs(ROW, torch.ones(3)),
            "p of shape .* and q of shape .* different numbers of categories",
        ),
        (lambda: kl_from_logits(torch.ones(0), torch.ones(0)), "p_logits .* no categories"),
        (lambda: kl_from_logits(torch.tensor(1.0), torch.tensor(1.0)), "p_logits .* no dimension"),
        (lambda: kl_from_logits(ROW, ROW, dim=2), "p_logits .* no dimension 2"),
        (lambda: kl_from_logits(ROW, ROW, temperature=0.0), "temperature must be positive"),
        (lambda: kl_from_logits(ROW, ROW, temperature=-1.0), "temperature must be positive"),
        (lambda: kl_from_logits(ROW, ROW, temperature=math.nan), "temperature must be positive"),
        (lambda: kl_from_logits(ROW, ROW, support=torch.ones(2)), "support must be bool"),
        (lambda: kl_from_logits(ROW, ROW, support=torch.tensor([True] * 3)), "support of shape"),
        (lambda: kl_from_logits(ROW, ROW, mask=torch.tensor([True] * 3)), "mask of shape"),
        (lambda: kl_from_logits(ROW, ROW, mask=torch.tensor(1)), "mask must be bool"),
        (lambda: kl_from_logits(ROW, ROW, unit="bit"), "unit must be one of nats, bits"),
        (lambda: kl_from_logits(ROW, ROW, reduction="mean"), '"mean" does not say of what'),
        (lambda: js_from_logits(ROW, ROW, 0.0), "weight must lie strictly between"),
        (lambda: js_from_probs(ROW, ROW, 1.0), "weight must lie strictly between"),
        (lambda: kl_from_probs(2 * ROW, ROW, validate=True), "p is not normalised: .* off 1 by 1"),
        (lambda: kl_from_probs(ROW, -ROW, validate=True), "q has negative values"),
        (lambda: kl_from_probs(ROW, ROW * math.nan, validate=True), "q has values .* not finite"),
        (lambda: kl_from_logits(ROW, ROW * math.nan, validate=True), "q_logits has values .* NaN"),
        (lambda: kl_from_logits(ROW - INF, ROW, validate=True), "p_logits has a row without"),
        (lambda: entropy_from_logits(ROW + INF, validate=True), "logits has values .* NaN or"),
        (lambda: entropy_from_probs(ROW * 0, validate=True), "p is not normalised"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="temprature"):
        kl_from_logits(ROW, ROW, temprature=2.0)
    with pytest.raises(TypeError, match="temperature"):  # of probabilities there is none
        kl_from_probs(ROW, ROW, temperature=2.0)
