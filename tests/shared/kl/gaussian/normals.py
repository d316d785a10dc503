"""What the tests of one-dimensional normals share: fifty digits of a KL, arguments near zero."""

import mpmath
import torch
from hypothesis import strategies as st

mpmath.mp.dps = 50
TINY = [sign * size for size in (1e-8, 1e-6, 1e-4, 1e-2) for sign in (1, -1)]
finite = st.floats(-30, 30, width=32)


def f64(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def exact_kl(mu_p, logvar_p, mu_q, logvar_q):
    """50 digits, from the textbook ratio of variances."""
    mu_p, logvar_p, mu_q, logvar_q = map(mpmath.mpf, (mu_p, logvar_p, mu_q, logvar_q))
    var_p, var_q = mpmath.exp(logvar_p), mpmath.exp(logvar_q)
    ratio = var_p / var_q
    return (ratio - 1 - mpmath.log(ratio) + (mu_p - mu_q) ** 2 / var_q) / 2
