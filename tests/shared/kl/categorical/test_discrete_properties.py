"""What holds for all distributions, on drawn examples; and what does not hold, on one."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.kl.categorical.discrete import (
    jeffreys_from_logits,
    js_distance_from_logits,
    js_from_logits,
    kl_from_logits,
    kl_from_probs,
)

SIZES = st.shared(st.integers(2, 12), key="size")
ROW = SIZES.flatmap(lambda n: st.lists(st.floats(-30, 30, width=32), min_size=n, max_size=n))
ROW64 = ROW.map(lambda row: torch.tensor(row, dtype=torch.float64))
ROW32 = ROW.map(torch.tensor)
WEIGHT = st.floats(0.01, 0.99)


@given(ROW32, ROW32)
def test_never_negative_in_float32(a, b):
    for function in (kl_from_logits, js_from_logits, jeffreys_from_logits):
        assert function(a, b) >= 0
    assert kl_from_probs(a.softmax(-1), b.softmax(-1)) >= 0


@given(ROW32, st.floats(1e-6, 1e-2))
def test_never_negative_and_never_lost_where_both_are_close(a, gap):
    b = a.clone()
    b[0] += gap
    changed = b[0] != a[0] and a.softmax(-1)[0].item() not in (0.0, 1.0)
    value = kl_from_logits(a, b)
    assert value > 0 if changed and a.softmax(-1)[0] > 1e-3 else value >= 0


@given(ROW64, st.floats(-100, 100))
def test_zero_iff_equal_up_to_a_shift_of_the_logits(a, shift):
    assert kl_from_logits(a, a) == 0
    assert kl_from_logits(a, a + shift) < 1e-12
    other = a.clone()
    other[a.argmax()] += 1
    assert kl_from_logits(a, other) > 1e-16 or a.softmax(-1).max() > 1 - 1e-12


@given(ROW64, ROW64, ROW64, ROW64, WEIGHT)
def test_joint_convexity(a, b, c, d, w):
    p1, q1, p2, q2 = (x.softmax(-1) for x in (a, b, c, d))
    mixed = kl_from_probs(w * p1 + (1 - w) * p2, w * q1 + (1 - w) * q2)
    assert mixed <= w * kl_from_probs(p1, q1) + (1 - w) * kl_from_probs(p2, q2) + 1e-9


@given(ROW64, ROW64, st.integers(0, 2**31), st.integers(1, 6))
def test_data_processing(a, b, seed, outcomes):
    """A channel that mixes outcomes loses information and never makes any."""
    generator = torch.Generator().manual_seed(seed)
    channel = torch.rand(len(a), outcomes, generator=generator, dtype=torch.float64) + 1e-3
    channel /= channel.sum(-1, keepdim=True)
    p, q = a.softmax(-1), b.softmax(-1)
    assert kl_from_probs(p @ channel, q @ channel) <= kl_from_probs(p, q) + 1e-12


@given(ROW64, ROW64, ROW64, ROW64)
def test_chain_rule(a, b, c, d):
    """Of independent pairs: D(p1 p2 || q1 q2) = D(p1 || q1) + D(p2 || q2)."""
    p, q = (a[:, None] + c).flatten(), (b[:, None] + d).flatten()
    total = kl_from_logits(a, b) + kl_from_logits(c, d)
    torch.testing.assert_close(kl_from_logits(p, q), total, rtol=1e-10, atol=1e-12)


@given(ROW64, ROW64, st.integers(0, 2**31))
def test_relabelling_outcomes_changes_nothing(a, b, seed):
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    for function in (kl_from_logits, js_from_logits, jeffreys_from_logits):
        torch.testing.assert_close(function(a[order], b[order]), function(a, b))


@given(ROW64, ROW64)
def test_pinsker_and_bretagnolle_huber(a, b):
    total_variation = 0.5 * (a.softmax(-1) - b.softmax(-1)).abs().sum()
    kl = kl_from_logits(a, b)
    assert total_variation <= (kl / 2).sqrt() + 1e-9
    assert total_variation <= (-torch.expm1(-kl)).sqrt() + 1e-9


@given(ROW64, ROW64, WEIGHT)
def test_jensen_shannon_is_symmetric_and_bounded(a, b, w):
    torch.testing.assert_close(js_from_logits(a, b), js_from_logits(b, a), rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(js_from_logits(a, b, w), js_from_logits(b, a, 1 - w))
    assert js_from_logits(a, b, w) <= -(w * math.log(w) + (1 - w) * math.log1p(-w)) + 1e-12
    assert js_from_logits(a, b, w) <= w * kl_from_logits(a, b) + (1 - w) * kl_from_logits(b, a)


@given(ROW64, ROW64, ROW64)
def test_triangle_inequality_of_the_jensen_shannon_distance(a, b, c):
    ab, bc, ac = (js_distance_from_logits(x, y) for x, y in ((a, b), (b, c), (a, c)))
    assert ac <= ab + bc + 1e-12


@given(ROW64, ROW64)
def test_units_and_the_sum_of_both_directions(a, b):
    nats = kl_from_logits(a, b)
    torch.testing.assert_close(kl_from_logits(a, b, unit="bits") * math.log(2), nats)
    torch.testing.assert_close(kl_from_logits(a, b, unit="hartleys") * math.log(10), nats)
    torch.testing.assert_close(
        jeffreys_from_logits(a, b), nats + kl_from_logits(b, a), rtol=1e-9, atol=1e-11
    )


def bernoulli(*first):
    return (torch.tensor([p, 1 - p], dtype=torch.float64) for p in first)


def test_kl_has_no_triangle_inequality():
    p, q, r = bernoulli(0.5, 0.25, 0.1)
    assert kl_from_probs(p, r) > 2 * (kl_from_probs(p, q) + kl_from_probs(q, r))


def test_asymmetry_is_no_law():
    """Distributions that are relabellings of each other have the same KL both ways."""
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    assert kl_from_probs(p, q) == kl_from_probs(q, p)
