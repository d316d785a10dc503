"""Distances and their standard errors, against their definitions."""

import math

import pytest
import torch

from distillation.lm.data import text_blocks
from distillation.lm.metrics import COMPARED, cost, distance, mean_and_error
from distillation.lm.model import keep_layers
from distillation.lm.teacher import predict_all
from tests import tiny


def test_distance_position_by_position() -> None:
    teacher, words = tiny.model(layers=3), tiny.tokenizer()
    student = keep_layers(teacher, [0, 2])
    documents = tiny.texts(6, words=11)
    found = distance(student, teacher, text_blocks(documents, words, length=50))
    rows = []
    for text in documents:
        tokens = torch.tensor([words(text)["input_ids"]])
        logits = [head.logits(hidden) for hidden, head in (teacher(tokens), student(tokens))]
        log_p, log_q = (one[0, :-1].double().log_softmax(-1) for one in logits)
        right = tokens[0, 1:, None]
        rows.append(
            torch.stack(
                [
                    (log_p.exp() * (log_p - log_q)).sum(-1),
                    (log_q.exp() * (log_q - log_p)).sum(-1),
                    (log_p.argmax(-1) == log_q.argmax(-1)).double(),
                    -log_q.gather(-1, right)[:, 0],
                    -log_p.gather(-1, right)[:, 0],
                ],
                -1,
            )
        )
    expected = torch.cat(rows).mean(0)
    for name, value in zip(COMPARED, expected.tolist(), strict=True):
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["perplexity_student"] == pytest.approx(math.exp(expected[3].item()), rel=1e-4)
    assert found["tokens"] == sum(len(row) for row in rows)
    assert found["documents"] == 6


def test_a_copy_has_no_distance_and_stored_predictions_change_nothing() -> None:
    teacher, words = tiny.model(), tiny.tokenizer()
    blocks = text_blocks(tiny.texts(20), words, length=12)
    found = distance(teacher, teacher, blocks)
    assert found["kl_teacher_student"] == found["kl_student_teacher"] == 0
    assert found["agreement"] == 1
    student = keep_layers(teacher, [0])
    predictions = predict_all(teacher, blocks.tokens)
    stored, live = (
        distance(student, teacher, blocks, predictions),
        distance(student, teacher, blocks),
    )
    assert stored == pytest.approx(live, rel=1e-5)


def test_standard_error_is_that_of_repetitions() -> None:
    """Documents of unequal length whose tokens are alike: 4,000 draws of 30 documents."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 12, (30,))
    document = torch.arange(30).repeat_interleave(lengths)
    means, errors = [], []
    for _ in range(4000):
        level = torch.randn(30).repeat_interleave(lengths)
        mean, error = mean_and_error(level + 0.5 * torch.randn(len(level)), document)
        means.append(mean.item())
        errors.append(error.item())
    true = torch.tensor(means).std().item()
    assert torch.tensor(errors).square().mean().sqrt().item() == pytest.approx(true, rel=0.08)
    naive = (1.25 / len(document)) ** 0.5  # as if tokens were independent
    assert true > 2 * naive


def test_cost() -> None:
    model = tiny.model()
    found = cost(model, torch.ones(4, 6, dtype=torch.long), new=4)
    assert found["parameters"] == sum(p.numel() for p in tiny.llama().parameters())
    assert found["weight_bytes"] == 4 * found["parameters"]
    assert found["tokens_read_per_second"] > 0
    assert found["tokens_written_per_second"] > 0
