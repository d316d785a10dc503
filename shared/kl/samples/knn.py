"""D(p || q) between densities of which nothing is known but samples."""

import math
import warnings

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..conventions import Unit, check_floating, convert


def _points(name: str, points: Tensor) -> np.ndarray:
    check_floating(**{name: points})
    if points.dim() != 2 or points.shape[1] == 0:
        raise ValueError(f"{name} must be [samples, dimensions], got {list(points.shape)}")
    if not bool(points.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite")
    return points.detach().cpu().double().numpy()


def kl_knn(x: Tensor, y: Tensor, k: int, *, unit: Unit = "nats") -> Tensor:
    """D(p || q) from samples of both by distances to nearest neighbours.

    d/n sum_i log(nu_i / rho_i) + log(m / (n - 1)), with rho_i the distance from x_i to its k-th
    neighbour among the other x and nu_i to its k-th neighbour in y (Wang, Kulkarni and Verdu 2009,
    "Divergence estimation for multidimensional densities via k-nearest-neighbor distances").
    Consistent for densities; at the same law half of the estimates are negative. A larger k trades
    variance for bias, and the estimate is low where p reaches beyond q: N(0, 1.5^2) from N(0, 1) in
    2 dimensions by 3000 and 2000 samples, 0.44 nats, is seen as 0.38 at k = 1 and 0.25 at k = 5.
    Not invariant to the scale of single coordinates, as D(p || q) is.

    Args:
        x: [n, d] from p; y: [m, d] from q; Euclidean distances, in float64 on the CPU.
        k: which neighbour, from 1 to min(n - 1, m).

    Returns:
        A float64 scalar on the device of ``x``, without a graph.

    Raises:
        ValueError: a distance of zero, because points of x occur more than k times in x, or k times
            in y: no density gives that, and the estimate is infinite; arguments of another type or
            shape, or not finite; k out of its range; an unknown unit.

    Warns:
        UserWarning: from 5 dimensions on, where the bias is not small any more.
    """
    a, b = _points("x", x), _points("y", y)
    (n, d), m = a.shape, len(b)
    if b.shape[1] != d:
        raise ValueError(f"x has {d} dimensions and y has {b.shape[1]}")
    if not 1 <= k <= min(n - 1, m):
        raise ValueError(f"k must be from 1 to min(n - 1, m) = {min(n - 1, m)}, got {k}")
    if d >= 5:
        warnings.warn(
            f"nearest neighbours in {d} dimensions are biased: 5000 samples see 0.5 nats (a shift) "
            "as about 0.44 in 5 dimensions, 0.38 in 10, 0.33 in 20, and 6.4 nats (a scale) as 7.8",
            stacklevel=2,
        )
    rho = cKDTree(a).query(a, [k + 1])[0]  # the first neighbour of a point is the point
    nu = cKDTree(b).query(a, [k])[0]
    if zeros := int(((rho == 0) | (nu == 0)).sum()):
        raise ValueError(
            f"{zeros} of the {n} points of x are at distance 0 from their neighbour number {k}: "
            f"x and y hold duplicates; a larger k may do"
        )
    value = d * float(np.log(nu / rho).mean()) + math.log(m / (n - 1))
    return convert(torch.tensor(value, dtype=torch.float64, device=x.device), "nats", unit)
