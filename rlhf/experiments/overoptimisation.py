"""Best-of-n against a proxy reward, and how reward falls off with KL when it is over-optimised.

Gao, Schulman and Hilton 2023 (arXiv 2210.10760) measure the distance from the reference by
d = sqrt(KL(policy || reference)), in square roots of nats, and rewards from the reference's mean.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["rl", "bon"]


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: KL(best of n samples || one sample) in nats.

    Exact where no two samples can have the same score, an upper bound otherwise (Beirami et al.
    2024, arXiv 2401.01879). Text is discrete, so that it is a bound there.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Tensor, reward: Tensor, n: int) -> Tensor:
    """Mean reward of the sample with the highest proxy among n, over all subsets of N samples.

    Unbiased for best-of-n with fresh samples (Nakano et al. 2021, arXiv 2112.09332): of
    the C(N, n) subsets, the sample above i others is the best of C(i, n - 1). Among equal proxies
    the earlier sample counts as lower: their order is random, as is the choice among them.

    Args:
        proxy, reward: [prompts, N] of the same completions, drawn independently from one policy.
        n: 1 ... N.

    Returns:
        [prompts] float64.

    Raises:
        ValueError: shapes that differ or are not [prompts, N]; n out of range; NaN in ``proxy``.
    """
    if proxy.dim() != 2 or proxy.shape != reward.shape:
        raise ValueError(
            f"proxy and reward must both be [prompts, N], got {list(proxy.shape)} "
            f"and {list(reward.shape)}"
        )
    samples = proxy.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"n must be between 1 and the {samples} samples of a prompt, got {n}")
    if proxy.isnan().any():
        raise ValueError("proxy must not hold NaN")
    subsets = math.comb(samples, n)  # integers of any size: their quotient is exact
    weights = [math.comb(lower, n - 1) / subsets for lower in range(samples)]
    by_proxy = reward.double().gather(1, proxy.argsort(dim=1, stable=True))
    return by_proxy @ torch.tensor(weights, dtype=torch.float64, device=reward.device)


@dataclass(frozen=True)
class Fit:
    """Coefficients of R(d), and how well they fit.

    ``rl``: R = d (alpha - beta ln d). ``bon``, best-of-n: R = d (alpha - beta d). R(0) = 0.
    """

    method: Method
    alpha: float
    beta: float
    r_squared: float

    def reward(self, d: Tensor) -> Tensor:
        """R(d), the reward above the reference's mean; d >= 0 of any shape."""
        first, second = _features(self.method, d)
        return self.alpha * first + self.beta * second

    @property
    def peak(self) -> tuple[float, float]:
        """The d* where R is largest, and R(d*); (inf, inf) if R grows without end.

        From R'(d) = 0: d* = exp(alpha / beta - 1) with R = beta d* for ``rl``, and
        d* = alpha / (2 beta) with R = alpha d* / 2 for ``bon``.
        """
        if self.beta < 0 or (self.beta == 0 and self.alpha > 0):
            return math.inf, math.inf
        if self.method == "rl":
            if self.beta == 0:
                return 0.0, 0.0
            exponent = self.alpha / self.beta - 1
            if exponent > 700:  # hardly bends: beyond what a float holds
                return math.inf, math.inf
            return math.exp(exponent), self.beta * math.exp(exponent)
        best = max(0.0, self.alpha / (2 * self.beta)) if self.beta else 0.0
        return best, self.alpha * best / 2


def fit(method: Method, d: Tensor, reward: Tensor, weights: Tensor | None = None) -> Fit:
    """Gao et al. 2023, eqs. of section 1, by least squares: both are linear in alpha and beta.

    Args:
        d: [points] square root of the KL, >= 0; where it is 0 the forms say R = 0 whatever alpha
            and beta.
        reward: [points] mean reward minus the reference's.
        weights: [points] of the squared errors, such as 1 / variance; without them all are 1.

    Returns:
        The fit; its R^2 is 1 - (squared error) / (squared deviation from the mean), weighted.

    Raises:
        ValueError: an unknown method; shapes that differ; numbers that are not finite, d or
            weights below 0; fewer than two different d > 0 of positive weight; equal rewards.
    """
    if method not in ("rl", "bon"):
        raise ValueError(f"method must be rl or bon, got {method!r}")
    weights = torch.ones_like(d) if weights is None else weights
    d, reward, weights = (x.detach().double() for x in (d, reward, weights))
    if d.dim() != 1 or not d.shape == reward.shape == weights.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (d, reward, weights))
        raise ValueError(f"d, reward and weights must have one shape [points], got {shapes}")
    if not torch.cat([d, reward, weights]).isfinite().all() or d.min() < 0 or weights.min() < 0:
        raise ValueError("d, reward and weights must be finite, d and weights not negative")
    if len(d[(d > 0) & (weights > 0)].unique()) < 2:
        raise ValueError("two coefficients need at least two different d > 0")
    root = weights.sqrt()
    features = torch.stack(_features(method, d), 1)
    solution = torch.linalg.lstsq(features * root[:, None], (reward * root)[:, None]).solution[:, 0]
    mean = (weights * reward).sum() / weights.sum()
    spread = (weights * (reward - mean).square()).sum()
    if spread == 0:
        raise ValueError("the rewards are all equal: there is nothing to explain")
    error = (weights * (reward - features @ solution).square()).sum()
    alpha, beta = solution.tolist()
    return Fit(method, alpha, beta, 1 - (error / spread).item())


def _features(method: Method, d: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of alpha and beta; d ln d is 0 at 0."""
    return d, -torch.special.xlogy(d, d) if method == "rl" else -d.square()
