"""float16 under a loss scale, as GradScaler applies it: gradients as right as those of F.kl_div."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.kl import chunked_js, chunked_kl, fused_linear_kl, js_from_logits, kl_from_logits

SCALES = [1.0, 2.0, 1024.0, 65536.0]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def peer(p: Tensor, q: Tensor) -> Tensor:
    log_q, log_p = q.float().log_softmax(-1), p.float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def gradients(
    loss: Callable[..., Tensor], tensors: list[Tensor], scale: float, dtype: torch.dtype
) -> list[Tensor]:
    leaves = [tensor.half().to(dtype).requires_grad_() for tensor in tensors]
    return list(torch.autograd.grad(loss(*leaves) * scale, leaves))


def error(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).norm() / truth.norm()).item()


P, Q = 3 * normal(64, 8000, seed=0), 3 * normal(64, 8000, seed=0) + normal(64, 8000, seed=1)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reduction", ["positionmean", "none"])
@pytest.mark.parametrize("inplace", [False, True])
def test_of_logits(scale: float, reduction: str, inplace: bool) -> None:
    def ours(q: Tensor) -> Tensor:
        student = q * 1 if inplace else q
        return chunked_kl(P, student, reduction=reduction, inplace=inplace).mean()

    (truth,) = gradients(lambda q: kl_from_logits(P.double(), q).mean(), [Q], scale, torch.float64)
    (found,) = gradients(ours, [Q], scale, torch.float16)
    (theirs,) = gradients(lambda q: peer(P, q), [Q], scale, torch.float16)
    assert error(found, truth) < 1.1 * error(theirs, truth) < 0.1
    assert (found == 0).sum() <= 1.1 * (theirs == 0).sum() + found.numel() / 1000


def test_one_row_at_the_first_scale_of_gradscaler() -> None:
    (found,) = gradients(
        lambda q: chunked_kl(torch.zeros(1, 4), q, reduction="sum"),
        [torch.arange(4.0)[None]],
        65536.0,
        torch.float16,
    )
    expected = 65536 * (torch.arange(4.0).softmax(0) - 0.25)
    torch.testing.assert_close(found[0].float(), expected, rtol=1e-3, atol=0)


def test_of_a_jensen_shannon_divergence() -> None:
    (truth,) = gradients(lambda q: js_from_logits(P.double(), q).mean(), [Q], 1024.0, torch.float64)
    (found,) = gradients(
        lambda q: chunked_js(P, q, reduction="positionmean"), [Q], 1024.0, torch.float16
    )
    assert error(found, truth) < 1e-3


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reduction", ["positionmean", "none"])
def test_of_hidden_states(scale: float, reduction: str) -> None:
    teacher = [normal(64, 32, seed=2), 0.5 * normal(2000, 32, seed=3)]
    student = [normal(64, 32, seed=4), 0.5 * normal(2000, 32, seed=5), normal(2000, seed=6)]
    p = [tensor.half() for tensor in teacher]

    def exact(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kl_from_logits(p[0].double() @ p[1].double().T, hidden @ weight.T + bias).mean()

    def ours(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_linear_kl(*p, hidden, weight, q_bias=bias, reduction=reduction).mean()

    def theirs(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return peer(F.linear(*p), F.linear(hidden, weight, bias))

    for found, other, truth in zip(
        gradients(ours, student, scale, torch.float16),
        gradients(theirs, student, scale, torch.float16),
        gradients(exact, student, scale, torch.float64),
        strict=True,
    ):
        assert error(found, truth) < 1.2 * error(other, truth) + 1e-4
