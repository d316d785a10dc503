import math
from statistics import fmean, stdev

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from distillation import metrics

N, CLASSES = 200, 4


@pytest.fixture
def example():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(N, CLASSES, generator=rng)
    return logits, torch.randint(CLASSES, (N,), generator=rng)


def test_of_classifier(example):
    logits, labels = example
    found = metrics.of_classifier(logits, labels)
    wrong = sum(
        max(range(CLASSES), key=lambda k: row[k]) != y
        for row, y in zip(logits.tolist(), labels.tolist(), strict=True)
    )
    scores = (-Categorical(logits=logits.double()).log_prob(labels)).tolist()
    assert (found["digits"], found["errors"]) == (N, wrong)
    assert found["nll"] == pytest.approx(fmean(scores), rel=1e-6)
    assert found["nll_standard_error"] == pytest.approx(stdev(scores) / math.sqrt(N), rel=1e-6)


def test_calibration_error_by_hand(example):
    logits, labels = example
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.double().softmax(-1).tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        bins.setdefault(math.ceil(15 * confidence), []).append(
            (confidence, row.index(confidence) == label)
        )
    expected = sum(
        abs(fmean(right for _, right in held) - fmean(c for c, _ in held)) * len(held) / N
        for held in bins.values()
    )
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(expected, rel=1e-9)


def test_calibration_error_of_the_calibrated_and_the_sure():
    """Logits log p with labels drawn from p are calibrated; ten times them are too sure."""
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(50_000, CLASSES, generator=rng).log_softmax(-1)
    labels = torch.multinomial(logits.exp(), 1, generator=rng)[:, 0]
    assert metrics.expected_calibration_error(logits, labels) < 0.02
    assert metrics.expected_calibration_error(10 * logits, labels) > 0.3


def test_of_pair(example):
    teacher, _ = example
    student = teacher.flip(0)
    found = metrics.of_pair(teacher, student)
    kl = kl_divergence(
        Categorical(logits=teacher.double()), Categorical(logits=student.double())
    ).tolist()
    assert found["kl_teacher_student"] == pytest.approx(fmean(kl), rel=1e-5)
    assert found["kl_teacher_student_standard_error"] == pytest.approx(
        stdev(kl) / math.sqrt(N), rel=1e-5
    )
    same = fmean(a == b for a, b in zip(teacher.argmax(1), student.argmax(1), strict=True))
    assert found["agreement"] == pytest.approx(same)
    assert metrics.of_pair(teacher, teacher + 3)["agreement"] == 1
    assert metrics.of_pair(teacher, teacher + 3)["kl_teacher_student"] == pytest.approx(0, abs=1e-6)


def test_match_prior_recovers_a_known_prior():
    """Bayes: a classifier for another prior is off by log ratios of priors, and by nothing else.

    x takes 50 values; the population holds each as often as its probability says.
    """
    rng = torch.Generator().manual_seed(2)
    likelihood = torch.rand(CLASSES, 50, generator=rng, dtype=torch.float64).pow(4)
    likelihood /= likelihood.sum(1, keepdim=True)  # p(x | y)
    prior = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    seen = torch.tensor([0.33, 0.33, 0.33, 0.01], dtype=torch.float64)
    counts = (2e4 * (prior @ likelihood)).round().long()
    logits = (likelihood.log().T + seen.log()).repeat_interleave(counts, 0)
    bias = metrics.match_prior(logits, prior)
    expected = (prior / seen).log()
    assert torch.allclose(bias, expected - expected.mean(), atol=2e-2)


def test_match_prior_gives_the_prior(example):
    logits, _ = example
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    moved = (logits + metrics.match_prior(logits, prior)).softmax(-1).mean(0)
    assert torch.allclose(moved, prior, atol=1e-6)


def test_best_offset_finds_what_was_taken_away():
    rng = torch.Generator().manual_seed(3)
    labels = torch.randint(CLASSES, (2000,), generator=rng)
    logits = torch.randn(2000, CLASSES, generator=rng)
    logits[torch.arange(2000), labels] += 4.0
    missing = torch.tensor([1.0, 0.0, 0.0, 1.0])
    offset, least = metrics.best_offset(logits - 7.6 * missing, labels, missing)
    assert offset == pytest.approx(7.6, abs=0.5)
    assert least <= metrics.errors(logits, labels)
    assert least == metrics.errors(logits + (offset - 7.6) * missing, labels)


def test_class_resemblance(example):
    logits, labels = example
    matrix = metrics.class_resemblance(logits, labels, 5.0)
    for label in range(CLASSES):
        rows = [row for row, y in zip(logits, labels, strict=True) if y == label]
        expected = torch.stack([(row / 5).softmax(0) for row in rows]).mean(0)
        assert torch.allclose(matrix[label], expected, atol=1e-6)
