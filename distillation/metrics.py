"""Metrics of a classifier: pure functions of logits [n, classes] and labels [n]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kl import kl_from_logits
from shared.training.statistics import mean_and_standard_error


def errors(logits: Tensor, labels: Tensor) -> int:
    """Number of digits whose largest logit is of another class."""
    return int((logits.argmax(-1) != labels).sum())


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """sum over bins of confidence of share |accuracy - confidence|, Guo et al. 2017, eq. 3."""
    confidence, guess = logits.double().softmax(-1).max(-1)
    bin_index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gap.index_add_(0, bin_index, (guess == labels).double() - confidence)
    return (gap.abs().sum() / len(labels)).item()


def of_classifier(logits: Tensor, labels: Tensor) -> dict[str, float | int]:
    """Errors, negative log-likelihood in nats and calibration."""
    nll, nll_error = mean_and_standard_error(F.cross_entropy(logits, labels, reduction="none"))
    return {
        "digits": len(labels),
        "errors": errors(logits, labels),
        "nll": nll,
        "nll_standard_error": nll_error,
        "calibration_error": expected_calibration_error(logits, labels),
    }


def of_pair(teacher: Tensor, student: Tensor) -> dict[str, float]:
    """KL(teacher || student) in nats at temperature 1, and the share of digits classified alike."""
    kl, kl_error = mean_and_standard_error(kl_from_logits(teacher, student))
    agreement = (teacher.argmax(-1) == student.argmax(-1)).double().mean().item()
    return {
        "kl_teacher_student": kl,
        "kl_teacher_student_standard_error": kl_error,
        "agreement": agreement,
    }


def match_prior(logits: Tensor, prior: Tensor, steps: int = 1000) -> Tensor:
    """Biases [classes] that make the mean of softmax(logits + bias) the prior; no labels needed.

    The minimum of the convex mean(logsumexp(logits + b)) - prior . b, by iterative scaling
    b += log prior - log mean (Darroch and Ratcliff 1972), each step of which lowers it.
    """
    wide, target = logits.double(), prior.double().log()
    bias = torch.zeros_like(target)
    for _ in range(steps):
        step = target - (wide + bias).softmax(-1).mean(0).log()
        bias += step
        if step.abs().max() < 1e-9:
            break
    return (bias - bias.mean()).to(logits)


def best_offset(logits: Tensor, labels: Tensor, missing: Tensor) -> tuple[float, int]:
    """The bias for all ``missing`` classes [classes] with the fewest errors, and their number.

    Hinton et al. 2015, section 3, who choose it on the test set.
    """
    offsets = [step / 10 for step in range(-50, 301)]
    counts = [errors(logits + offset * missing, labels) for offset in offsets]
    least = min(counts)
    return offsets[counts.index(least)], least


def class_resemblance(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean soft target of each class: [label, class it resembles]."""
    soft = (logits / temperature).softmax(-1)
    return torch.stack([soft[labels == label].mean(0) for label in range(logits.shape[-1])])
