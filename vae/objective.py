"""The objectives, in nats per example: functions of batch means, so that N processes equal one.

Notation: D = -E_q log p(x|z), the distortion; R = KL(q(z|x) || p(z)), the rate. ``mean`` averages
rows [batch, ...] over the global batch (see ``shared.processes.distributed``).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from shared.kl import (
    bernoulli_log_prob,
    capacity_penalty,
    decompose_kl,
    free_bits,
    importance_weighted_bound,
    kl_standard_normal,
    normal_log_prob,
)
from vae.model import Output

Mean = Callable[[Tensor], Tensor]


class Loss(NamedTuple):
    """An objective and the two parts that are logged: batch means in nats."""

    total: Tensor  # [], minimised
    distortion: Tensor  # []
    rate: Tensor  # [latent]


def distortion(x: Tensor, out: Output) -> Tensor:
    """-log p(x|z), summed over pixels: x [batch, pixels] -> [k, batch]."""
    return -bernoulli_log_prob(x, out.logits).sum(-1)


def log_weights(x: Tensor, out: Output, beta: float = 1.0) -> Tensor:
    """log p(x|z) + beta (log p(z) - log q(z|x)), [k, batch]; beta = 1 gives importance weights."""
    log_q = normal_log_prob(out.z, out.mu, out.logvar).sum(-1)
    log_p = normal_log_prob(out.z, out.z.new_zeros(()), out.z.new_zeros(())).sum(-1)
    return beta * (log_p - log_q) - distortion(x, out)


def elbo(x: Tensor, out: Output, mean: Mean, *, beta: float, minimum: float) -> Loss:
    """D + beta R, Higgins et al. 2017, eq. 4; ``minimum`` nats of each latent are free."""
    d = mean(distortion(x, out).mean(0))
    rate = mean(kl_standard_normal(out.mu, out.logvar))
    return Loss(d + beta * free_bits(rate, minimum), d.detach(), rate.detach())


def capacity(x: Tensor, out: Output, mean: Mean, *, nats: float, gamma: float) -> Loss:
    """D + gamma |R - C|, Burgess et al. 2018, eq. 8."""
    d = mean(distortion(x, out).mean(0))
    rate = mean(kl_standard_normal(out.mu, out.logvar))
    return Loss(d + capacity_penalty(rate.sum(), nats, gamma), d.detach(), rate.detach())


def total_correlation(
    x: Tensor, out: Output, mean: Mean, *, beta: float, gather: Mean, dataset_size: int
) -> Loss:
    """D + I(x; z) + beta TC + sum_j KL(q(z_j) || p(z_j)), Chen et al. 2018, eq. 4, k = 1 sample."""
    parts = decompose_kl(
        out.z[0], out.mu, out.logvar, gather(out.mu), gather(out.logvar), dataset_size
    )
    d = mean(distortion(x, out).mean(0))
    rate = mean(kl_standard_normal(out.mu, out.logvar))
    weighted = parts.mutual_information + beta * parts.total_correlation + parts.dimension_wise
    return Loss(d + mean(weighted), d.detach(), rate.detach())


def iwae(x: Tensor, out: Output, mean: Mean, *, beta: float, dreg: bool) -> Loss:
    """-log 1/K sum_k w_k, Burda et al. 2015, eq. 8; ``dreg``: Tucker et al. 2019, eq. 8.

    beta other than 1 (annealing) tempers p(z)/q(z|x) inside the weights w.
    """
    rate = mean(kl_standard_normal(out.mu, out.logvar)).detach()
    d = mean(distortion(x, out).mean(0)).detach()
    if not dreg:
        bound = importance_weighted_bound(log_weights(x, out, beta))
        return Loss(-mean(bound), d, rate)
    # The decoder's gradient is weighted by w~; the encoder's, through z alone, by w~ squared. With
    # w = p(x|z) (p(z)/q(z|x))^beta the score term that DReG removes is beta times as large.
    log_w = log_weights(x, out._replace(mu=out.mu.detach(), logvar=out.logvar.detach()), beta)
    share = log_w.detach().softmax(0)  # w~ [k, batch]
    if out.z.requires_grad:
        out.z.register_hook(lambda grad: grad * (1 - beta + beta * share)[..., None])
    bound = importance_weighted_bound(log_w.detach())
    surrogate = (share * log_w).sum(0)
    return Loss(-mean(bound + (surrogate - surrogate.detach())), d, rate)


def vib(labels: Tensor, out: Output, mean: Mean, *, beta: float) -> Loss:
    """E_q[-log p(y|z)] + beta R, Alemi et al. 2016, eq. 17; labels [batch], distortion in nats."""
    k = out.logits.shape[0]
    nll = F.cross_entropy(out.logits.flatten(0, 1), labels.repeat(k), reduction="none")
    d = mean(nll.unflatten(0, (k, -1)).mean(0))
    rate = mean(kl_standard_normal(out.mu, out.logvar))
    return Loss(d + beta * rate.sum(), d.detach(), rate.detach())
