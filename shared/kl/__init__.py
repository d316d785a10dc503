"""The KL toolbox: pure functions on tensors, in nats, with D(p || q) written as ``(p, q)``.

Imports torch only; knows nothing of the applications.
"""

from shared.kl.bernoulli import bernoulli_log_prob, kl_bernoulli
from shared.kl.gaussian import kl_normal, kl_standard_normal, normal_log_prob
from shared.kl.importance import (
    effective_sample_size,
    importance_weighted_bound,
    log_mean_exp,
)
from shared.kl.schedules import capacity_penalty, cyclical, free_bits, linear
from shared.kl.total_correlation import KLDecomposition, decompose_kl

__all__ = [
    "KLDecomposition",
    "bernoulli_log_prob",
    "capacity_penalty",
    "cyclical",
    "decompose_kl",
    "effective_sample_size",
    "free_bits",
    "importance_weighted_bound",
    "kl_bernoulli",
    "kl_normal",
    "kl_standard_normal",
    "linear",
    "log_mean_exp",
    "normal_log_prob",
]
