"""Lower bounds on mutual information I(X; Y) = D(p(x, y) || p(x) p(y)) by a critic, in nats.

All take a score matrix [n, n] with T(x_i, y_j) at i, j: the diagonal holds n samples of the joint,
the rest n (n - 1) of the product of the marginals. All are differentiable and to be maximised.

What they cannot do (McAllester and Stratos 2020; Song and Ermon 2020; Poole et al. 2019), measured
with the best critic there is on correlated Gaussians: mean and standard deviation over batches.

=====  ===  ============  ============  ===========  ============
truth  n    DV            NWJ           InfoNCE      SMILE at 5
=====  ===  ============  ============  ===========  ============
0.5    64   0.50 (0.10)   0.50 (0.10)   0.49 (0.10)  0.50 (0.10)
2      64   2.01 (0.22)   2.00 (0.22)   1.84 (0.17)  2.02 (0.22)
10     64   11.11 (1.45)  9.77 (4.48)   4.12 (0.04)  12.00 (0.69)
10     512  10.24 (0.55)  10.04 (0.92)  6.05 (0.03)  11.95 (0.20)
=====  ===  ============  ============  ===========  ============
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..conventions import check_floating


def _parts(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The scores in float32 at least, and which of them pair x with another's y.

    Raises:
        ValueError: not a square matrix of at least 2 rows, or not of a floating-point type.
    """
    check_floating(scores=scores)
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] < 2:
        raise ValueError(f"scores must be [n, n] with n at least 2, got {list(scores.shape)}")
    apart = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)), apart


def _log_mean_exp_apart(scores: Tensor, apart: Tensor) -> Tensor:
    """log of the mean of exp(T) over pairs of the product of the marginals."""
    n = len(scores)
    return scores.masked_fill(~apart, -torch.inf).logsumexp((0, 1)) - math.log(n * (n - 1))


def dv_bound(scores: Tensor) -> Tensor:
    """E_joint T - log E_product exp(T) (Donsker and Varadhan 1975).

    A lower bound with exact expectations, but not of a batch: the log of a mean is biased low,
    so the estimate is biased high (see the table above), and its gradient is biased, see
    ``mine_loss``. Tight at T = log p(y|x) / p(y) + any constant.
    """
    scores, apart = _parts(scores)
    return scores.diagonal().mean() - _log_mean_exp_apart(scores, apart)


def nwj_bound(scores: Tensor) -> Tensor:
    """E_joint T - E_product exp(T - 1) (Nguyen, Wainwright and Jordan 2010, f-GAN's KL).

    A lower bound also in expectation over batches; its variance grows like exp(I) / n. Tight at
    T = 1 + log p(y|x) / p(y), without a free constant.
    """
    scores, apart = _parts(scores)
    return scores.diagonal().mean() - (_log_mean_exp_apart(scores, apart) - 1).exp()


def infonce_bound(scores: Tensor) -> Tensor:
    """mean_i log exp(T_ii) / (1/n sum_j exp(T_ij)) (van den Oord et al. 2018).

    A lower bound in expectation with low variance (Poole et al. 2019, eq. 10), and never above
    log n whatever the truth.
    """
    scores, _ = _parts(scores)
    return (scores.diagonal() - scores.logsumexp(1)).mean() + math.log(len(scores))


def smile_bound(scores: Tensor, clip: float) -> Tensor:
    """DV with the scores of the product clipped to [-clip, clip] (Song and Ermon 2020).

    Less variance for a bias of either sign: no bound. ``clip`` of infinity is DV.

    Raises:
        ValueError: ``clip`` is not positive.
    """
    if not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")
    scores, apart = _parts(scores)
    return scores.diagonal().mean() - _log_mean_exp_apart(scores.clamp(-clip, clip), apart)


class MINEState(NamedTuple):
    """The moving average of E_product exp(T), as two scalars: save and restore them as tensors."""

    log_sum: Tensor
    """log of the decayed sum of the batches' means."""
    weight: Tensor
    """The decayed sum of ones, from 0 to 1; the average is exp(log_sum) / weight."""

    @classmethod
    def start(cls, device: torch.device | str = "cpu") -> "MINEState":
        """No batch seen: the first one becomes the average."""
        return cls(torch.tensor(-torch.inf, device=device), torch.tensor(0.0, device=device))


def mine_loss(scores: Tensor, state: MINEState, decay: float) -> tuple[Tensor, MINEState]:
    """The loss of MINE (Belghazi et al. 2018, section 3.2) and the next state.

    The value is minus the batch's Donsker-Varadhan estimate. The gradient is that of
    -(E_joint T - E_product exp(T) / average), with the average of E_product exp(T) over batches,
    this one included, held fixed: dividing by the batch's own mean instead is biased. At
    ``decay = 0`` it is the gradient of ``dv_bound``.

    Args:
        scores: [n, n], see the module.
        state: the last state, ``MINEState.start()`` at first.
        decay: of the moving average, in [0, 1); 0.99 remembers about 100 batches.

    Raises:
        ValueError: ``decay`` out of its range; scores as for the bounds.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    scores, apart = _parts(scores)
    joint, log_mean = scores.diagonal().mean(), _log_mean_exp_apart(scores, apart)
    kept = state.log_sum + math.log(decay) if decay else torch.full_like(state.log_sum, -torch.inf)
    log_sum = torch.logaddexp(kept, log_mean.detach() + math.log1p(-decay))
    state = MINEState(log_sum, decay * state.weight + (1 - decay))
    surrogate = joint - (log_mean - log_sum + state.weight.log()).exp()
    value = joint - log_mean
    return -(surrogate + (value - surrogate).detach()), state


class Critic(nn.Module):
    """T(x, y) by a network of one hidden layer over the concatenation, for all pairs at once.

    [n, x_size], [m, y_size] -> [n, m]; memory n m hidden.
    """

    def __init__(self, x_size: int, y_size: int, hidden: int) -> None:
        super().__init__()
        self.from_x = nn.Linear(x_size, hidden)
        self.from_y = nn.Linear(y_size, hidden, bias=False)
        self.between = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of every x with every y."""
        h = torch.relu(self.from_x(x)[:, None] + self.from_y(y))
        return self.score(torch.relu(self.between(h))).squeeze(-1)
