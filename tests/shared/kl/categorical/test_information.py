import math

import pytest
import torch

from shared.kl.categorical.discrete import entropy_from_probs, kl_from_logits, kl_from_probs
from shared.kl.categorical.information import (
    mutual_information_from_logits,
    mutual_information_from_probs,
    perplexity,
    perplexity_from_logits,
    perplexity_from_probs,
    pointwise_kl_from_logits,
    pointwise_kl_from_probs,
)
from shared.kl.conventions import convert, reduce

FAIR, BIASED = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.5], [0.9, 0.1]))


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_terms_of_the_coin():
    terms = pointwise_kl_from_probs(FAIR, BIASED, unit="bits")
    truth = torch.tensor([-0.4239984, 1.1609640], dtype=torch.float64)
    torch.testing.assert_close(terms, truth, rtol=1e-6, atol=0)


def test_terms_are_signed_and_sum_to_the_kl():
    a, b = logits(4, 9, 3), logits(4, 9, 3, seed=1)
    terms = pointwise_kl_from_logits(a, b, dim=1)
    assert terms.shape == a.shape
    assert (terms < 0).any()
    torch.testing.assert_close(terms.sum(1), kl_from_logits(a, b, dim=1))
    torch.testing.assert_close(terms, pointwise_kl_from_probs(a.softmax(1), b.softmax(1), dim=1))
    p, q = a.softmax(1), b.softmax(1)
    torch.testing.assert_close(terms, p * (p / q).log())


def test_terms_at_zeros_and_masks():
    p, q = torch.tensor([[0.0, 0.5, 0.5]] * 2), torch.tensor([[0.5, 0.5, 0.0]] * 2)
    p[1] = math.nan
    terms = pointwise_kl_from_probs(p, q, mask=torch.tensor([True, False]))
    assert terms.tolist() == [[0.0, 0.0, math.inf], [0.0, 0.0, 0.0]]


def test_mutual_information_of_a_noisy_channel():
    """A fair bit flipped with probability e: 1 - H(e) bits."""
    e = torch.tensor(0.11, dtype=torch.float64)
    joint = torch.stack([torch.stack([1 - e, e]), torch.stack([e, 1 - e])]) / 2
    truth = 1 - entropy_from_probs(torch.stack([e, 1 - e]), unit="bits")
    value = mutual_information_from_probs(joint, unit="bits", validate=True)
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(mutual_information_from_logits(joint.log() + 5, unit="bits"), truth)


def test_mutual_information_by_the_entropies():
    joint = logits(6, 20).softmax(-1).view(6, 4, 5)
    h_x, h_y = (entropy_from_probs(joint.sum(d)) for d in (-1, -2))
    value = mutual_information_from_probs(joint)
    torch.testing.assert_close(value, h_x + h_y - entropy_from_probs(joint.flatten(1)))
    assert (value <= torch.minimum(h_x, h_y)).all()


def test_mutual_information_near_independence_in_float32():
    """H(X) + H(Y) - H(X, Y) has no digit left here."""
    x, y = logits(40).softmax(-1), logits(50, seed=1).softmax(-1)
    product = x.outer(y)
    tilt = 1e-4 * (x - x.mean()).sign().outer((y - y.mean()).sign())
    joint = product * (1 + tilt)
    joint /= joint.sum()
    truth = mutual_information_from_probs(joint)
    assert truth < 1e-8
    value = mutual_information_from_probs(joint.float())
    torch.testing.assert_close(value.double(), truth, rtol=1e-2, atol=0)
    assert mutual_information_from_probs(product) < 1e-30


def test_mutual_information_masks_and_bad_arguments():
    joint = logits(3, 20).softmax(-1).view(3, 4, 5)
    mask = torch.tensor([True, False, True])
    truth = mutual_information_from_probs(joint)[mask].mean()
    joint[1] = math.nan
    value = mutual_information_from_probs(joint, mask=mask, reduction="positionmean")
    torch.testing.assert_close(value, truth)
    value = mutual_information_from_logits(joint.log(), mask=mask, reduction="positionmean")
    torch.testing.assert_close(value, truth)
    with pytest.raises(ValueError, match="joint must have dimensions"):
        mutual_information_from_probs(torch.ones(3))
    with pytest.raises(ValueError, match="joint_logits must have dimensions"):
        mutual_information_from_logits(torch.ones(3))
    with pytest.raises(ValueError, match="not normalised"):
        mutual_information_from_probs(torch.ones(3, 4), validate=True)


def test_perplexity_counts_outcomes():
    uniform = torch.full((8,), 0.125, dtype=torch.float64)
    assert perplexity_from_probs(uniform, uniform).item() == pytest.approx(8, rel=1e-14)
    three = torch.tensor(3.0)
    assert perplexity(three, "bits").item() == pytest.approx(8)
    assert perplexity(three).item() == pytest.approx(math.exp(3))
    a, b = logits(5, 9), logits(5, 9, seed=1)
    p, q = a.softmax(-1), b.softmax(-1)
    truth = torch.exp(-(p * q.log()).sum(-1).mean())
    torch.testing.assert_close(perplexity_from_logits(a, b, reduction="positionmean"), truth)
    assert perplexity_from_logits(a, b, unit="bits").equal(perplexity_from_logits(a, b))


def test_units():
    one = torch.tensor(1.0, dtype=torch.float64)
    assert convert(one, "bits", "nats").item() == pytest.approx(math.log(2), rel=1e-15)
    assert convert(one, "hartleys", "bits").item() == pytest.approx(math.log2(10), rel=1e-15)
    assert convert(one, "nats", "nats") is one
    with pytest.raises(ValueError, match="unit must be one of nats, bits, hartleys, got 'nat'"):
        convert(one, "nat", "bits")


def test_what_each_reduction_divides_by():
    values = torch.arange(12.0).view(3, 4)
    mask = values % 3 == 0  # 0, 3, 6, 9
    assert reduce(values, mask, "sum").item() == 18
    assert reduce(values, mask, "batchmean").item() == 6
    assert reduce(values, mask, "positionmean").item() == 4.5
    assert reduce(values, None, "batchmean").item() == 22
    assert reduce(values, None, "positionmean").item() == 5.5
    assert reduce(torch.tensor(2.0), None, "batchmean").item() == 2
    column = torch.tensor([[True], [False], [True]])  # broadcasts: eight positions count
    assert reduce(values, column, "positionmean").item() == (values[0].sum() + values[2].sum()) / 8
    with pytest.raises(ValueError, match="reduction must be one of none, sum, batchmean"):
        reduce(values, None, "average")


def test_what_does_not_count_is_replaced_and_not_multiplied_by_zero():
    values = torch.tensor([1.0, math.inf, math.nan], requires_grad=True)
    total = reduce(values, torch.tensor([True, False, False]), "sum")
    assert total.item() == 1
    total.backward()
    assert values.grad.tolist() == [1, 0, 0]


def test_masking_keeps_infinities_out_of_the_mean():
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    q = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert kl_from_probs(p, q, reduction="positionmean").item() == math.inf
    mask = torch.tensor([True, False])
    assert kl_from_probs(p, q, mask=mask, reduction="positionmean").item() == 0
