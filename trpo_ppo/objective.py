"""The objectives per transition, and PPO's gradient in closed form up to the policy's outputs.

Notation: rho = pi_new(a|s) / pi_old(a|s), A the advantage, eps the clip range; nats.

A minibatch of 64 is so little work that autograd's bookkeeping would take three quarters of an
update, hence the derivatives below; tests compare each with autograd's of the definition. A
derivative has the type of the distribution: for every parameter, the derivative with respect to it.
"""

import torch
from torch import Tensor

from shared.kl import kl_from_logits_gradient, kl_normal_gradient
from trpo_ppo.policy import Categorical, Distribution, Gaussian


def surrogate(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor) -> Tensor:
    """rho A, Schulman et al. 2017 (arXiv 1707.06347), eq. 6; 2015 (1502.05477), eq. 14: [batch]."""
    return torch.exp(log_prob - old_log_prob) * advantages


def value_loss(values: Tensor, targets: Tensor) -> Tensor:
    """(V - target)^2 per state: [batch]."""
    return (values - targets).square()


def explained_variance(
    target: Tensor, target_square: Tensor, error: Tensor, error_square: Tensor
) -> Tensor:
    """1 - Var[target - V] / Var[target] from means of those and of their squares: [].

    1 is perfect, 0 no better than the mean; 0 where all targets are equal.
    """
    variance = target_square - target.square()
    rest = error_square - error.square()
    return torch.where(variance > 0, 1 - rest / variance, 0.0)


def surrogate_slope(ratio: Tensor, advantages: Tensor) -> Tensor:
    """Derivative of rho A with respect to log pi: rho A itself. [batch]."""
    return ratio * advantages


def clipped_slope(ratio: Tensor, advantages: Tensor, eps: float) -> Tensor:
    """The same of PPO's objective, Schulman et al. 2017, eq. 7: min(rho A, clip(rho, 1 +- eps) A).

    rho A, and 0 where the clipped term is the smaller one: rho has gone beyond the range in the
    direction that pays. [batch].
    """
    beyond = torch.where(advantages > 0, ratio > 1 + eps, ratio < 1 - eps)
    return torch.where(beyond, 0.0, ratio * advantages)


def d_log_prob(new: Distribution, actions: Tensor, weights: Tensor) -> Distribution:
    """Derivative of sum_i weights_i log pi(a_i|s_i) with respect to the outputs of each row."""
    w = weights[:, None]
    if isinstance(new, Gaussian):
        precision = torch.exp(-new.logvar)
        error = actions - new.mean
        scaled = w * error * precision
        return Gaussian(scaled, 0.5 * ((scaled * error).sum(0) - weights.sum()))
    gradient = -w * new.logits.softmax(-1)
    return Categorical(gradient.scatter_add_(-1, actions.long(), w))


def d_kl(old: Distribution, new: Distribution) -> Distribution:
    """Derivative of sum_i KL(old_i || new_i) with respect to the outputs of ``new``."""
    if isinstance(old, Gaussian) and isinstance(new, Gaussian):
        mean, logvar = kl_normal_gradient(old.mean, old.logvar, new.mean, new.logvar)
        return Gaussian(mean, logvar.sum(0))
    assert isinstance(old, Categorical)
    assert isinstance(new, Categorical)
    return Categorical(kl_from_logits_gradient(old.logits, new.logits))


def d_entropy(new: Distribution) -> Distribution:
    """Derivative of sum_i H(pi(.|s_i)) with respect to the outputs."""
    if isinstance(new, Gaussian):
        return Gaussian(torch.zeros_like(new.mean), torch.full_like(new.logvar, len(new.mean) / 2))
    log_p = new.logits.log_softmax(-1)
    p = log_p.exp()
    return Categorical(-p * (log_p - (p * log_p).sum(-1, keepdim=True)))


def add(a: Distribution, b: Distribution, factor: float) -> Distribution:
    """a + factor b, of two derivatives of one kind."""
    if isinstance(a, Gaussian) and isinstance(b, Gaussian):
        return Gaussian(a.mean + factor * b.mean, a.logvar + factor * b.logvar)
    assert isinstance(a, Categorical)
    assert isinstance(b, Categorical)
    return Categorical(a.logits + factor * b.logits)
