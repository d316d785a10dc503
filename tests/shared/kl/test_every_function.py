"""The conventions of the README's table, for every public function that it does not exclude."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import shared.kl as kl

# torch.func and the compiler import modules of torch that still call it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")

CHOICES = {  # not functions of distributions, samples or amounts
    *"Annealing AdaptiveKL PPOPenalty constant linear cosine cyclical kl_early_stop".split(),
    *"Critic MINEState KLEstimate TermSummary KLDecomposition FDivergence Reduction Unit".split(),
}
OBJECTS = {"kl_divergence", "reparameterized_kl"}  # functions of torch.distributions
ONCE = set(
    """kl_knn mutual_information_knn sinkhorn_divergence wasserstein_1d
    chunked_kl chunked_js chunked_skew_kl
    fused_linear_kl fused_linear_js fused_linear_skew_kl""".split()
)
MATRICES = {name for name in kl.__all__ if name.endswith("mvn") or name == "kl_mvn_from_scale_tril"}


def normal(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def rows(seed: int) -> Tensor:
    return normal(4, 5, seed=seed)


A, B, X, Y = (rows(seed) for seed in range(4))
P, Q = A.softmax(-1), B.softmax(-1)
SQUARE = normal(4, 4, seed=7)
TRIANGLE = normal(3, 3, seed=8).tril(-1) + 1.5 * torch.eye(3, dtype=torch.float64)
COVARIANCE = TRIANGLE @ TRIANGLE.T
INDICES = torch.tensor([[0, 1, 3]] * 4)
LOG_PROBS = A.log_softmax(-1)[:, [0, 1, 3]]
F = kl.FDivergence("KL", lambda d: d * torch.exp(d - d.clamp(min=0)), 0.0, math.inf)

# name: function of floating-point tensors, and those tensors
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "alpha_from_logits": (lambda p, q: kl.alpha_from_logits(p, q, 0.3), (A, B)),
    "alpha_from_probs": (lambda p, q: kl.alpha_from_probs(p, q, 0.3), (P, Q)),
    "bernoulli_log_prob": (kl.bernoulli_log_prob, (P, B)),
    "bretagnolle_huber": (kl.bretagnolle_huber, (P,)),
    "capacity_penalty": (lambda x: kl.capacity_penalty(x[0, 0], 2.0, 3.0), (P,)),
    "chunked_js": (kl.chunked_js, (A, B)),
    "chunked_kl": (kl.chunked_kl, (A, B)),
    "chunked_skew_kl": (kl.chunked_skew_kl, (A, B)),
    "convert": (lambda x: kl.convert(x, "nats", "bits"), (A,)),
    "decompose_kl": (
        lambda z, mu, v: torch.stack(kl.decompose_kl(z, mu, v, mu, v, 100)),
        (X, A, B),
    ),
    "dv_bound": (kl.dv_bound, (SQUARE,)),
    "effective_sample_size": (kl.effective_sample_size, (A,)),
    "entropy_from_logits": (kl.entropy_from_logits, (A,)),
    "entropy_from_probs": (kl.entropy_from_probs, (P,)),
    "f_divergence_from_logits": (lambda p, q: kl.f_divergence_from_logits(p, q, F), (A, B)),
    "f_divergence_from_probs": (lambda p, q: kl.f_divergence_from_probs(p, q, F), (P, Q)),
    "free_bits": (lambda x: kl.free_bits(x, 0.1), (P[0],)),
    "fused_linear_js": (kl.fused_linear_js, (A, X, B, Y)),
    "fused_linear_kl": (kl.fused_linear_kl, (A, X, B, Y)),
    "fused_linear_skew_kl": (kl.fused_linear_skew_kl, (A, X, B, Y)),
    "importance_weighted_bound": (kl.importance_weighted_bound, (A,)),
    "infonce_bound": (kl.infonce_bound, (SQUARE,)),
    "js_from_total_variation": (lambda x: torch.stack(kl.js_from_total_variation(x)), (P,)),
    "kl_above_hellinger": (kl.kl_above_hellinger, (P,)),
    "kl_above_total_variation": (kl.kl_above_total_variation, (P,)),
    "kl_below_chi2": (kl.kl_below_chi2, (P,)),
    "kl_bernoulli": (kl.kl_bernoulli, (A, B)),
    "kl_from_logits_gradient": (kl.kl_from_logits_gradient, (A, B)),
    "kl_knn": (lambda x, y: kl.kl_knn(x, y, 1), (X[:, :3], Y[:, :3])),
    "kl_loss": (kl.kl_loss, (A, B)),
    "kl_mvn": (kl.kl_mvn, (A[0, :3], COVARIANCE, B[0, :3], COVARIANCE.T)),
    "kl_mvn_from_scale_tril": (
        kl.kl_mvn_from_scale_tril,
        (A[0, :3], TRIANGLE, B[0, :3], 2 * TRIANGLE),
    ),
    "kl_normal": (kl.kl_normal, (A, B, X, Y)),
    "kl_normal_gradient": (lambda *args: torch.stack(kl.kl_normal_gradient(*args)), (A, B, X, Y)),
    "kl_standard_normal": (kl.kl_standard_normal, (A, B)),
    "kl_topk": (lambda p, q: kl.kl_topk(p, INDICES, q), (LOG_PROBS, B)),
    "log_mean_exp": (lambda x: kl.log_mean_exp(x, 0), (A,)),
    "log_ratio_estimator": (kl.log_ratio_estimator, (A, B)),
    "mine_loss": (lambda s: kl.mine_loss(s, kl.MINEState.start(), 0.5)[0], (SQUARE,)),
    "mutual_information_knn": (kl.mutual_information_knn, (X[:, :3], Y[:, :3])),
    "mutual_information_from_logits": (kl.mutual_information_from_logits, (SQUARE,)),
    "mutual_information_from_probs": (
        kl.mutual_information_from_probs,
        (SQUARE.flatten().softmax(0).reshape(4, 4),),
    ),
    "normal_log_prob": (kl.normal_log_prob, (X, A, B)),
    "nwj_bound": (kl.nwj_bound, (SQUARE,)),
    "perplexity": (kl.perplexity, (A,)),
    "pinsker": (kl.pinsker, (P,)),
    "rao_blackwell_kl": (kl.rao_blackwell_kl, (A, B)),
    "reduce": (lambda x: kl.reduce(x, None, "positionmean"), (A,)),
    "renyi_from_logits": (lambda p, q: kl.renyi_from_logits(p, q, 0.3), (A, B)),
    "renyi_from_probs": (lambda p, q: kl.renyi_from_probs(p, q, 0.3), (P, Q)),
    "renyi_mvn": (
        lambda *args: kl.renyi_mvn(*args, 0.5),
        (A[0, :3], COVARIANCE, B[0, :3], 2 * COVARIANCE),
    ),
    "renyi_normal": (lambda *args: kl.renyi_normal(*args, 0.5), (A, B, X, Y)),
    "sequence_kl_surrogate": (kl.sequence_kl_surrogate, (A, B)),
    "sinkhorn_divergence": (lambda x, y: kl.sinkhorn_divergence(x, y, epsilon=1.0), (X, Y)),
    "smile_bound": (lambda s: kl.smile_bound(s, 1.0), (SQUARE,)),
    "summarise_terms": (lambda x: kl.summarise_terms(x).estimate.mean, (A,)),
    "total_variation_from_hellinger": (
        lambda x: torch.stack(kl.total_variation_from_hellinger(x)),
        (P,),
    ),
    "wasserstein_1d": (kl.wasserstein_1d, (X[0], Y[0])),
}
for name in "bhattacharyya_normal squared_hellinger_normal squared_wasserstein2_normal".split():
    CALLS[name] = getattr(kl, name), (A, B, X, Y)
for name in "bhattacharyya_mvn squared_hellinger_mvn squared_wasserstein2_mvn".split():
    CALLS[name] = getattr(kl, name), (A[0, :3], COVARIANCE, B[0, :3], 2 * COVARIANCE)
for name in kl.__all__:
    if name not in CALLS and name.endswith(("_from_logits", "_from_probs")):
        CALLS[name] = getattr(kl, name), (A, B) if name.endswith("_logits") else (P, Q)
    if name.endswith("_from_log_probs"):
        CALLS[name] = getattr(kl, name), (A.log_softmax(-1), B.log_softmax(-1))
CALLS["entropy_from_log_probs"] = kl.entropy_from_log_probs, (A.log_softmax(-1),)

SMOOTH = sorted(CALLS.keys() - ONCE - {"convert", "reduce"})


def test_every_public_function_is_here() -> None:
    assert set(kl.__all__) - CHOICES - OBJECTS == CALLS.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"convert", "reduce"}))
def test_half_precision_is_computed_and_returned_in_float32(name: str, dtype: torch.dtype) -> None:
    function, arguments = CALLS[name]
    half = [tensor.to(dtype) for tensor in arguments]
    result = function(*half)
    assert result.dtype == (torch.float64 if name.endswith("_knn") else torch.float32)
    expected = function(*[tensor.float() for tensor in half])
    rounding = {"rtol": 2e-2, "atol": 2e-3} if name in ONCE else {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(result, expected, **rounding)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"convert", "reduce"}))
def test_integers_are_refused_by_name(name: str, dtype: torch.dtype) -> None:
    function, arguments = CALLS[name]
    with pytest.raises(ValueError, match=r"floating-point|terms|type"):
        function(*[tensor.to(dtype) for tensor in arguments])


def gradient(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    found = torch.autograd.grad(function(*leaves).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


@pytest.mark.parametrize("name", SMOOTH)
def test_forward_mode_is_reverse_mode(name: str) -> None:
    function, arguments = CALLS[name]
    directions = tuple(normal(*x.shape, seed=20 + i) for i, x in enumerate(arguments))
    _, derivative = torch.func.jvp(lambda *args: function(*args).sum(), arguments, directions)
    expected = sum(
        (g * d).sum() for g, d in zip(gradient(function, arguments), directions, strict=True)
    )
    torch.testing.assert_close(derivative, torch.as_tensor(expected), rtol=1e-8, atol=1e-10)


TWICE = sorted(
    set(SMOOTH)
    - {"renyi_mvn", "bhattacharyya_mvn", "squared_hellinger_mvn", "squared_wasserstein2_mvn"}
    - {"mine_loss", "sequence_kl_surrogate", "kl_loss"}  # parts of their gradient are held fixed
)


@pytest.mark.parametrize("name", TWICE)
def test_hessians_are_finite_differences_of_gradients(name: str) -> None:
    function, arguments = CALLS[name]
    first, *others = arguments

    def value(x: Tensor) -> Tensor:
        return function(x, *others).sum()

    hessian = torch.func.hessian(value)(first)
    direction, step = normal(*first.shape, seed=30), 1e-5
    up, down = (torch.func.grad(value)(first + sign * step * direction) for sign in (1, -1))
    along = (hessian * direction).flatten(first.dim()).sum(-1)
    torch.testing.assert_close(along, (up - down) / (2 * step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_batch_by_vmap_is_a_loop(name: str) -> None:
    function, arguments = CALLS[name]
    batch = [torch.stack([tensor, tensor.flip(0)]) for tensor in arguments]
    if name in MATRICES:
        batch = [torch.stack([tensor, 1.5 * tensor]) for tensor in arguments]
    found = torch.func.vmap(function)(*batch)
    expected = torch.stack([function(*each) for each in zip(*batch, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_one_graph_for_the_compiler(name: str) -> None:
    function, arguments = CALLS[name]
    torch._dynamo.reset()
    compiled: Any = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        gradient(compiled, arguments), gradient(function, arguments), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
