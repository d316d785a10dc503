"""kl_divergence inside torch.func, forward mode and the compiler."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from shared.kl import kl_divergence

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")

X = torch.tensor([0.3, 0.7, 1.4], dtype=torch.float64)
ONE, TWO, ZERO = torch.ones_like(X), 2 * torch.ones_like(X), torch.zeros_like(X)


def lognormal(x: Tensor) -> tuple[Any, Any]:
    return td.LogNormal(x, x.exp(), **OFF), td.LogNormal(ZERO, ONE, **OFF)


OFF: dict[str, Any] = {"validate_args": False}  # torch's own checks look at values
PAIRS: dict[str, Callable[[Tensor], tuple[Any, Any]]] = {
    "Normal": lambda x: (td.Normal(x, x.exp(), **OFF), td.Normal(ZERO, ONE, **OFF)),
    "Gamma": lambda x: (td.Gamma(x.exp(), x.exp(), **OFF), td.Gamma(TWO, ONE, **OFF)),
    "Beta": lambda x: (td.Beta(x.exp(), x.exp(), **OFF), td.Beta(TWO, ONE, **OFF)),
    "Dirichlet": lambda x: (td.Dirichlet(x.exp(), **OFF), td.Dirichlet(TWO, **OFF)),
    "Categorical": lambda x: (td.Categorical(logits=x, **OFF), td.Categorical(logits=ZERO, **OFF)),
    "Categorical of probabilities": lambda x: (
        td.Categorical(x.softmax(-1), **OFF),
        td.Categorical(ZERO.softmax(-1), **OFF),
    ),
    "Bernoulli": lambda x: (td.Bernoulli(logits=x, **OFF), td.Bernoulli(logits=ZERO, **OFF)),
    "Binomial": lambda x: (td.Binomial(3, logits=x, **OFF), td.Binomial(3, logits=ZERO, **OFF)),
    "NegativeBinomial": lambda x: (
        td.NegativeBinomial(3.0, logits=x, **OFF),
        td.NegativeBinomial(3.0, logits=ZERO, **OFF),
    ),
    "Gamma and Exponential": lambda x: (
        td.Gamma(x.exp(), x.exp(), **OFF),
        td.Exponential(ONE, **OFF),
    ),
    "Laplace and Normal": lambda x: (td.Laplace(x, x.exp(), **OFF), td.Normal(ZERO, ONE, **OFF)),
    "Geometric": lambda x: (td.Geometric(logits=x, **OFF), td.Geometric(logits=ZERO, **OFF)),
    "Laplace": lambda x: (td.Laplace(x, x.exp(), **OFF), td.Laplace(ZERO, ONE, **OFF)),
    "Exponential": lambda x: (td.Exponential(x.exp(), **OFF), td.Exponential(ONE, **OFF)),
    "Poisson": lambda x: (td.Poisson(x.exp(), **OFF), td.Poisson(ONE, **OFF)),
    "Gumbel": lambda x: (td.Gumbel(x, x.exp(), **OFF), td.Gumbel(ZERO, ONE, **OFF)),
    "Pareto": lambda x: (td.Pareto(TWO, x.exp(), **OFF), td.Pareto(ONE, ONE, **OFF)),
    "HalfNormal": lambda x: (td.HalfNormal(x.exp(), **OFF), td.HalfNormal(ONE, **OFF)),
    "LogNormal": lognormal,
    "ContinuousBernoulli": lambda x: (
        td.ContinuousBernoulli(logits=x, **OFF),
        td.ContinuousBernoulli(logits=ZERO, **OFF),
    ),
    "MultivariateNormal": lambda x: (
        td.MultivariateNormal(x, scale_tril=torch.diag_embed(x.exp()), **OFF),
        td.MultivariateNormal(ZERO, scale_tril=torch.eye(3, dtype=X.dtype), **OFF),
    ),
    "Independent": lambda x: (
        td.Independent(td.Normal(x, x.exp(), **OFF), 1, **OFF),
        td.Independent(td.Normal(ZERO, ONE, **OFF), 1, **OFF),
    ),
}


@pytest.fixture(params=PAIRS)
def function(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    pair = PAIRS[request.param]
    return lambda x: kl_divergence(*pair(x))


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def test_forward_mode_is_reverse_mode(function: Callable[[Tensor], Tensor]) -> None:
    direction = torch.tensor([1.0, -0.5, 0.3], dtype=X.dtype)
    _, found = torch.func.jvp(lambda x: function(x).sum(), (X,), (direction,))
    expected = (gradient(function, X) * direction).sum()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_hessians_are_differences_of_gradients(function: Callable[[Tensor], Tensor]) -> None:
    hessian = torch.func.hessian(lambda x: function(x).sum())(X)
    step = 1e-5
    columns = [
        (gradient(function, X + step * unit) - gradient(function, X - step * unit)) / (2 * step)
        for unit in torch.eye(3, dtype=X.dtype)
    ]
    torch.testing.assert_close(hessian, torch.stack(columns, -1), rtol=1e-4, atol=1e-6)


def test_a_batch_by_vmap_is_a_loop(function: Callable[[Tensor], Tensor]) -> None:
    found = torch.func.vmap(function)(torch.stack([X, X + 1]))
    expected = torch.stack([function(X), function(X + 1)])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_one_graph_for_the_compiler(function: Callable[[Tensor], Tensor]) -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), function(X), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient(compiled, X), gradient(function, X), rtol=1e-7, atol=1e-9)


def test_the_compiler_gives_nan_where_there_is_no_closed_form() -> None:
    torch._dynamo.reset()

    def fewer(x: Tensor) -> Tensor:
        return kl_divergence(td.Binomial(2, logits=x, **OFF), td.Binomial(3, logits=x, **OFF))

    with pytest.raises(NotImplementedError, match="no closed form"):
        fewer(X)
    compiled: Any = torch.compile(fewer, fullgraph=True, backend="aot_eager")
    assert compiled(X).isnan().all()
