"""Wasserstein distances on the line, exactly: finite where supports are disjoint."""

import torch
from torch import Tensor

from .conventions import check_floating, safe_root


def uniform(points: Tensor, n: int) -> Tensor:
    return torch.full((n,), 1.0 / n, dtype=torch.float64, device=points.device)


def check_weights(name: str, weights: Tensor, n: int, validate: bool) -> None:
    check_floating(**{name: weights})
    if weights.dim() == 0 or weights.shape[-1] != n:
        raise ValueError(f"{name} of shape {list(weights.shape)} is not for {n} points")
    if validate:
        if not bool((weights >= 0).all()):
            raise ValueError(f"{name} has values that are negative or NaN")
        error = (weights.sum(-1) - 1).abs().max().item() if weights.numel() else 0.0
        if error > (1e-8 if weights.dtype == torch.float64 else 1e-4):
            raise ValueError(f"{name} do not sum to one: a sum is off by {error:g}")


def common_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


def common_batch(x: torch.Size, y: torch.Size, *weights: Tensor | None) -> torch.Size:
    """The leading dimensions of points and weights together; ValueError if they do not fit."""
    shapes = [x, y, *(w.shape[:-1] for w in weights if w is not None)]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        listed = ", ".join(str(list(shape)) for shape in shapes)
        raise ValueError(
            f"the leading dimensions of x, y and their weights do not broadcast: {listed}"
        ) from None


def wasserstein_1d(
    x: Tensor,
    y: Tensor,
    order: float = 1.0,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    validate: bool = False,
) -> Tensor:
    """W_order between two weighted samples on the line, exactly.

    (integral over u in (0, 1) of |F^-1(u) - G^-1(u)|^order)^(1 / order), F^-1 and G^-1 the two
    quantile functions (Villani 2003, Theorem 2.18). Differentiable in points and weights; the
    gradient is 0 between equal samples, where there is none.

    Args:
        x: points [..., n]. y: points [..., m], leading dimensions broadcastable with those of x.
        order: at least 1 and finite.
        x_weights, y_weights: [n] or as the points, not negative, summing to one (uniform if None).
            Without ``validate`` their sum is taken to be one.

    Returns:
        [...], in the unit of the points; computed in float64 and returned in the points' type,
        float32 for half precision. Rounding errors of the weights are mass: e of it moves the
        result by up to e^(1/order) times the diameter.

    Raises:
        ValueError: ``order`` out of range, no points, shapes that do not fit, types that are not
            floating-point; with ``validate`` weights that are negative or do not sum to one.
    """
    if not 1 <= order < float("inf"):
        raise ValueError(f"order must be at least 1 and finite, got {order}")
    check_floating(x=x, y=y)
    for name, points in (("x", x), ("y", y)):
        if points.dim() == 0 or points.shape[-1] == 0:
            raise ValueError(f"{name} of shape {list(points.shape)} has no points")
    batch = common_batch(x.shape[:-1], y.shape[:-1], x_weights, y_weights)
    quantiles = []
    for name, points, weights in (("x_weights", x, x_weights), ("y_weights", y, y_weights)):
        n = points.shape[-1]
        ordered, index = points.double().expand(*batch, n).sort(-1)
        if weights is None:  # 2/3 and 4/6 are the same float64; sums of thirds and sixths are not
            levels = torch.arange(1, n + 1, dtype=torch.float64, device=x.device) / n
            levels = levels.expand_as(ordered)
        else:
            check_weights(name, weights, n, validate)
            levels = weights.double().expand_as(ordered).gather(-1, index).cumsum(-1)
        quantiles.append((ordered, levels))
    steps = torch.cat([levels for _, levels in quantiles], -1).sort(-1).values
    widths = torch.diff(steps, dim=-1, prepend=torch.zeros_like(steps[..., :1]))
    values = []
    for ordered, levels in quantiles:
        index = torch.searchsorted(levels.detach().contiguous(), steps.detach().contiguous())
        # By rounding the weights of one side may sum to less; its last point goes on.
        values.append(ordered.gather(-1, index.clamp(max=ordered.shape[-1] - 1)))
    gaps = (values[0] - values[1]).abs()
    scale = gaps.detach().amax(-1, keepdim=True)  # large orders underflow without
    scale = torch.where(scale > 0, scale, 1.0)
    total = (widths * (gaps / scale).pow(order)).sum(-1)
    return (scale.squeeze(-1) * safe_root(total, order)).to(common_dtype(x, y))
