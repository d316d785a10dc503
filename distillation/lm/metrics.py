"""Distances of a student from its teacher on held-out text, in nats per token, and their cost."""

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.lm.data import Blocks
from distillation.lm.objective import POSITIONS, LazyLogits
from distillation.lm.teacher import PER_PASS
from shared.kl import chunked_kl
from shared.language_models.causal import LanguageModel
from shared.training.seeding import EVALUATION, generator

COMPARED = """kl_teacher_student kl_student_teacher agreement
    cross_entropy_student cross_entropy_teacher""".split()


@torch.no_grad()
def compare(teacher: LazyLogits, student: LazyLogits, tokens: Tensor) -> Tensor:
    """The quantities of COMPARED, at temperature 1: tokens [positions] -> [positions, 5]."""
    rows = []
    for start in range(0, len(tokens), POSITIONS):
        part = slice(start, start + POSITIONS)
        p, q, right = teacher.at(part).logits(), student.at(part).logits(), tokens[part]
        values = (
            chunked_kl(p, q),
            chunked_kl(q, p),
            (p.argmax(-1) == q.argmax(-1)).float(),
            *(F.cross_entropy(logits, right, reduction="none") for logits in (q, p)),
        )
        rows.append(torch.stack(values, -1))
    return torch.cat(rows)


def mean_and_error(values: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
    """Means over positions and their standard errors over documents.

    Tokens of one document are alike, so documents are the independent unit; their numbers of
    tokens differ, so that the mean is a ratio and its error the linearised one.

    Args:
        values: [positions, ...]; document: [positions].

    Returns:
        [...] and [...]; the error of a single document is NaN.
    """
    values = values.double()
    _, number = document.unique(return_inverse=True)
    documents = int(number.max()) + 1
    mean = values.mean(0)
    deviation = values.new_zeros(documents, *values.shape[1:])
    deviation.index_add_(0, number, values - mean)
    scale = documents / (documents - 1) if documents > 1 else math.nan
    return mean, (scale * deviation.square().sum(0)).sqrt() / len(values)


@torch.no_grad()
def distance(
    student: LanguageModel,
    teacher: LanguageModel,
    blocks: Blocks,
    predictions: LazyLogits | None = None,
) -> dict[str, Any]:
    """Every quantity of COMPARED with its standard error, and perplexities.

    ``predictions``: the teacher's in the blocks, if they have been computed.
    """
    student.eval()
    parts, documents = [], []
    for start in range(0, len(blocks.tokens), PER_PASS):
        rows = slice(start, start + PER_PASS)
        block = blocks.at(rows)
        of_student = LazyLogits(*student(block.tokens[:, :-1])).at(block.counts)
        of_teacher = (
            predictions.at(rows) if predictions else LazyLogits(*teacher(block.tokens[:, :-1]))
        ).at(block.counts)
        parts.append(compare(of_teacher, of_student, block.tokens[:, 1:][block.counts]))
        documents.append(block.document[:, None].expand_as(block.counts)[block.counts])
    values = torch.cat(parts)
    means, errors = mean_and_error(values, torch.cat(documents))
    result = {name: mean.item() for name, mean in zip(COMPARED, means, strict=True)}
    for name, error in zip(COMPARED, errors, strict=True):
        result[f"{name}_standard_error"] = error.item()
    for who in ("student", "teacher"):
        result[f"perplexity_{who}"] = math.exp(result[f"cross_entropy_{who}"])
    counts = {"tokens": len(values), "documents": len(blocks.document.unique())}
    return result | counts


def cost(model: LanguageModel, prompts: Tensor, new: int = 16) -> dict[str, Any]:
    """Parameters, bytes of weights, and tokens per second of reading and of writing.

    Reading is one forward pass over prompts [n, length]; writing continues them with a cache of
    keys and values. CPU-seconds on a CPU (other work hardly disturbs them), else on the clock.
    """
    clock = time.process_time if prompts.device.type == "cpu" else _clock_of_device
    uniforms = torch.rand(len(prompts), new, generator=generator("cpu", 0, EVALUATION))
    uniforms = uniforms.to(prompts.device)
    with torch.no_grad():
        model(prompts[:1])
        started = clock()
        hidden, head = model(prompts)
        head.logits(hidden[:, -1])
        read = clock()
        model.complete(prompts, uniforms)
        written = clock()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "tokens_read_per_second": prompts.numel() / (read - started),
        "tokens_written_per_second": uniforms.numel() / max(1e-9, written - 2 * read + started),
    }


def _clock_of_device() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
