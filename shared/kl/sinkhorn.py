"""Entropic optimal transport between point clouds: finite where supports are disjoint."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .conventions import check_floating, safe_root
from .transport import check_weights, common_batch, common_dtype, uniform

_AVERAGED = 30  # 2^-30 is below any tolerance of use
_BETWEEN_NEWTON = 50  # iterations
_LARGEST_SYSTEM = 3000  # points; more take longer to factorise than iterations are worth
_NEWTON_STEPS = 12
_HALVINGS = 30
_DAMPING = 1e-7  # of the diagonal, for clusters that hardly exchange mass


def _potentials(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """The dual potentials f [..., n] and g [..., m], by Sinkhorn's iterations on logarithms."""
    log_a, log_b = a.log()[..., :, None], b.log()[..., None, :]

    def f_of(g: Tensor, blur: float) -> Tensor:
        return -blur * torch.logsumexp(log_b + (g[..., None, :] - cost) / blur, -1)

    def g_of(f: Tensor, blur: float) -> Tensor:
        return -blur * torch.logsumexp(log_a + (f[..., :, None] - cost) / blur, -2)

    f, g = torch.zeros_like(a), torch.zeros_like(b)
    # From a blurred problem to the one asked for: fewer iterations than from nothing. Averaged
    # updates of both sides at once halve the error of a cloud against itself at every step (Feydy
    # et al. 2019, section 3.2); between different clouds alternating updates are the faster.
    blurs = [max(float(cost.max()) if cost.numel() else 0.0, epsilon)]
    while blurs[-1] > epsilon:
        blurs.append(max(blurs[-1] / 2, epsilon))
    for blur in blurs + _AVERAGED * [epsilon]:
        f, g = (f + f_of(g, blur)) / 2, (g + g_of(f, blur)) / 2
    violation = torch.inf
    small = max(a.shape[-1], b.shape[-1]) <= _LARGEST_SYSTEM
    for iteration in range(1, max_iterations + 1):
        f = f_of(g, epsilon)
        g_new = g_of(f, epsilon)
        # The mass that the plan of (f, g) sends to each y, against what it should be.
        off = (b * torch.expm1((g - g_new) / epsilon)).abs().sum(-1)
        violation = float(off.max()) if off.numel() else 0.0
        if violation <= tolerance:
            return f, g_new
        g = g_new
        if small and iteration % _BETWEEN_NEWTON == 0:
            g = _newton(f_of, cost, a, b, g, epsilon)
    raise RuntimeError(
        f"Sinkhorn's iterations have not converged: after {max_iterations} the plan's marginal is "
        f"off by {violation:g}, the tolerance is {tolerance:g}; raise max_iterations or epsilon"
    )


def _newton(
    f_of: Callable[[Tensor, float], Tensor],
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    epsilon: float,
) -> Tensor:
    """g after steps of Newton's method on the semi-dual a . f(g) + b . g, as far as they raise it.

    Its gradient is b - c, c the mass that the plan sends to each y, and its Hessian minus
    (diag(c) - P^T diag(1/a) P) / epsilon (Cuturi and Peyre 2016, section 3). Sinkhorn's iterations
    approach a solution by a factor near 1 where epsilon is small, these by squares.
    """
    value = (a * f_of(g, epsilon)).sum(-1) + (b * g).sum(-1)
    for _ in range(_NEWTON_STEPS):
        f = f_of(g, epsilon)
        plan = ((f[..., :, None] + g[..., None, :] - cost) / epsilon).exp()
        plan = plan * a[..., :, None] * b[..., None, :]
        mass = plan.sum(-2)
        share = plan / plan.sum(-1, keepdim=True).clamp(min=torch.finfo(plan.dtype).tiny)
        # A constant added to g changes nothing; b b^T takes that direction out.
        system = b[..., :, None] * b[..., None, :] - plan.mT @ share
        diagonal = torch.where(mass > 0, mass * (1 + _DAMPING), 1.0)
        system = system + torch.diag_embed(diagonal)
        factor, info = torch.linalg.cholesky_ex(system)
        step = torch.cholesky_solve((epsilon * (b - mass))[..., None], factor).squeeze(-1)
        step = torch.where((info == 0)[..., None] & step.isfinite(), step, 0.0)
        raised = torch.zeros_like(value, dtype=torch.bool)
        for _ in range(_HALVINGS):
            tried = g + step
            f_tried = f_of(tried, epsilon)
            value_tried = (a * f_tried).sum(-1) + (b * tried).sum(-1)
            better = ~raised & (value_tried > value)
            g = torch.where(better[..., None], tried, g)
            value = torch.where(better, value_tried, value)
            raised = raised | better
            if bool(raised.all()):
                break
            step = torch.where(raised[..., None], 0.0, step / 2)
        if not bool(raised.any()):
            break
    return g


class _OnceOnly(torch.autograd.Function):
    """The first argument, with an error for who differentiates it by the others."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        raise RuntimeError("sinkhorn_divergence can be differentiated only once")


class _EntropicCost(torch.autograd.Function):
    """min <P, cost> + epsilon KL(P || a b^T); its gradients are P and the potentials (envelope)."""

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tolerance: float, steps: int
    ) -> Tensor:
        f, g = _potentials(cost, a, b, epsilon, tolerance, steps)
        ctx.save_for_backward(cost, a, b, f, g)
        ctx.epsilon = epsilon
        return (a * f).sum(-1) + (b * g).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cost, a, b, f, g = ctx.saved_tensors
        with torch.no_grad():
            plan = ((f[..., :, None] + g[..., None, :] - cost) / ctx.epsilon).exp()
            plan = plan * a[..., :, None] * b[..., None, :]
        # The potentials depend on the inputs, which autograd does not know: torch's own
        # once_differentiable would let a wrong second derivative with respect to points pass.
        plan, f, g = (_OnceOnly.apply(t, cost, a, b) for t in (plan, f, g))
        grad = grad[..., None]
        return grad[..., None] * plan, grad * f, grad * g, None, None, None


def _cost(x: Tensor, y: Tensor, order: int) -> Tensor:
    squares = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return squares if order == 2 else safe_root(squares)


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    epsilon: float,
    order: int = 2,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 5000,
    validate: bool = False,
) -> Tensor:
    """Debiased entropic transport OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 between point clouds.

    Feydy et al. 2019, eq. 3, with OT = min <P, C> + epsilon KL(P || a b^T) and C = |x - y|^order,
    without a half. Tends to W_order^order as epsilon -> 0, and to a squared distance of means
    (order 2) as epsilon -> inf. Solved in float64 whatever the inputs. Differentiable once in
    points and weights; a second derivative raises RuntimeError.

    Args:
        x: points [..., n, d]. y: points [..., m, d]; leading dimensions broadcast.
        epsilon: in the unit of the cost, length^order. It is reached from a large one by halves;
            up to 3,000 points steps of Newton's method take over where iterations are slow.
        order: 1 or 2.
        x_weights, y_weights: [n] or [..., n], positive, summing to one (uniform if None).
        tolerance: largest total error of a plan's marginals; the result's error is of the order
            of tolerance times max(C).

    Returns:
        [...], zero between equal clouds; float32 for half precision.

    Raises:
        ValueError: ``epsilon`` or ``tolerance`` not positive, ``order`` not 1 or 2, shapes that do
            not fit, types that are not floating-point; with ``validate`` weights that are negative
            or do not sum to one.
        RuntimeError: ``max_iterations`` have not reached ``tolerance``.
    """
    for option, value in (("epsilon", epsilon), ("tolerance", tolerance)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{option} must be positive and finite, got {value}")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    check_floating(x=x, y=y)
    for name, points in (("x", x), ("y", y)):
        if points.dim() < 2 or points.shape[-2] == 0:
            raise ValueError(f"{name} of shape {list(points.shape)} is not [..., points, d]")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} coordinates and y has {y.shape[-1]}")
    dtype = common_dtype(x, y)
    a = uniform(x, x.shape[-2]) if x_weights is None else x_weights
    b = uniform(y, y.shape[-2]) if y_weights is None else y_weights
    check_weights("x_weights", a, x.shape[-2], validate)
    check_weights("y_weights", b, y.shape[-2], validate)
    batch = common_batch(x.shape[:-2], y.shape[:-2], a, b)
    x, y = (points.double().expand(*batch, *points.shape[-2:]) for points in (x, y))
    a, b = (weights.double().expand(*batch, weights.shape[-1]) for weights in (a, b))

    def transport(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _EntropicCost.apply(_cost(x, y, order), a, b, epsilon, tolerance, max_iterations)

    self_distances = (transport(x, x, a, a) + transport(y, y, b, b)) / 2
    return (transport(x, y, a, b) - self_distances).to(dtype)
