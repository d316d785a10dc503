"""The rest of the README's table for every function with a mask and a reduction: empty batches,
masked rows, excluded categories."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shared import kl
from tests.shared.kl.test_every_function import CALLS, A, B, F

MORE: dict[str, tuple[Any, ...]] = {  # arguments that are not tensors
    **{
        f"{name}_from_{kind}": (0.3,) for name in ("alpha", "renyi") for kind in ("logits", "probs")
    },
    **{f"f_divergence_from_{kind}": (F,) for kind in ("logits", "probs")},
}


def takes_reduction(name: str) -> bool:
    parameters = inspect.signature(getattr(kl, name)).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return "reduction" in parameters or inspect.Parameter.VAR_KEYWORD in kinds


NAMES = sorted(
    name
    for name in CALLS
    if takes_reduction(name)
    and not name.startswith(("fused", "pointwise", "mutual", "kl_topk", "reduce", "sequence"))
    and name not in ("kl_loss", "log_ratio_estimator")  # whose positions are all dimensions
)
IN_LOGITS = sorted(
    {name for name in NAMES if name.endswith("_from_logits") or name.startswith("chunked")}
)


def call(name: str, *tensors: Tensor, **options: Any) -> Tensor:
    value: Tensor = getattr(kl, name)(*tensors, *MORE.get(name, ()), **options)
    return value


def test_the_walk_is_long() -> None:
    assert len(NAMES) >= 35


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch(name: str, dtype: torch.dtype) -> None:
    empty = [tensor[:0].to(dtype) for tensor in CALLS[name][1]]
    assert call(name, *empty).shape == (0,)
    for reduction in ("sum", "batchmean", "positionmean"):
        value = call(name, *empty, reduction=reduction)
        assert value.item() == (1 if name.startswith("perplexity") else 0)


@pytest.mark.parametrize("name", NAMES)
def test_masked_rows_are_not_read(name: str) -> None:
    tensors = CALLS[name][1]
    mask = torch.tensor([True, False, True, False])
    dirty = [
        tensor.clone().requires_grad_(i == len(tensors) - 1) for i, tensor in enumerate(tensors)
    ]
    with torch.no_grad():
        for tensor in dirty:
            tensor[~mask] = torch.nan
    for reduction in ("sum", "batchmean", "positionmean"):
        value = call(name, *dirty, mask=mask, reduction=reduction)
        clean = call(name, *(tensor[mask] for tensor in tensors), reduction="sum")
        if name.startswith("perplexity"):
            clean = clean.log()
            value = value.log()
        count = {"batchmean": 4, "positionmean": 2}.get(reduction, 1)
        torch.testing.assert_close(value, clean / count, rtol=1e-9, atol=1e-12)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, dirty[-1])
            assert (gradient[~mask] == 0).all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", IN_LOGITS)
def test_a_category_that_both_exclude_is_none(name: str) -> None:
    excluded = [torch.cat([x, torch.full((4, 1), -math.inf)], -1) for x in (A, B)]
    one = len(CALLS[name][1]) == 1
    leaf = excluded[0].clone().requires_grad_()
    value = call(name, *([leaf] if one else [leaf, excluded[1]]))
    torch.testing.assert_close(value, call(name, *([A] if one else [A, B])), rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert gradient.isfinite().all()
    assert (gradient[:, -1] == 0).all()


@pytest.mark.parametrize("name", IN_LOGITS)
def test_a_row_without_categories_is_nan_and_spoils_no_other(name: str) -> None:
    one = len(CALLS[name][1]) == 1
    p = A.clone()
    p[1] = -math.inf
    value = call(name, *([p] if one else [p, B]))
    assert value.isnan().tolist() == [False, True, False, False]
