"""The KL toolbox: functions on tensors, in nats, with D(p || q) written as ``(p, q)``.

Imports torch, and SciPy for one k-d tree; knows nothing of the applications. The README beside it
says which function is for what.
"""

from inspect import ismodule as _ismodule

from .categorical.bernoulli import bernoulli_log_prob, kl_bernoulli
from .categorical.bounds import (
    bretagnolle_huber,
    js_from_total_variation,
    kl_above_hellinger,
    kl_above_total_variation,
    kl_below_chi2,
    pinsker,
    total_variation_from_hellinger,
)
from .categorical.discrete import (
    cross_entropy_from_log_probs,
    cross_entropy_from_logits,
    cross_entropy_from_probs,
    entropy_from_log_probs,
    entropy_from_logits,
    entropy_from_probs,
    jeffreys_from_log_probs,
    jeffreys_from_logits,
    jeffreys_from_probs,
    js_distance_from_log_probs,
    js_distance_from_logits,
    js_distance_from_probs,
    js_from_log_probs,
    js_from_logits,
    js_from_probs,
    kl_from_log_probs,
    kl_from_logits,
    kl_from_logits_gradient,
    kl_from_probs,
    skew_kl_from_log_probs,
    skew_kl_from_logits,
    skew_kl_from_probs,
)
from .categorical.divergences import (
    FDivergence,
    f_divergence_from_logits,
    f_divergence_from_probs,
    neyman_chi2_from_logits,
    neyman_chi2_from_probs,
    pearson_chi2_from_logits,
    pearson_chi2_from_probs,
    squared_hellinger_from_logits,
    squared_hellinger_from_probs,
    total_variation_from_logits,
    total_variation_from_probs,
)
from .categorical.information import (
    mutual_information_from_logits,
    mutual_information_from_probs,
    perplexity,
    perplexity_from_logits,
    perplexity_from_probs,
    pointwise_kl_from_logits,
    pointwise_kl_from_probs,
)
from .categorical.renyi import (
    alpha_from_logits,
    alpha_from_probs,
    renyi_from_logits,
    renyi_from_probs,
)
from .conventions import Reduction, Unit, convert, reduce
from .distributions.kl_divergence import kl_divergence
from .gaussian.diagonal import (
    bhattacharyya_normal,
    kl_normal,
    kl_normal_gradient,
    kl_standard_normal,
    normal_log_prob,
    renyi_normal,
    squared_hellinger_normal,
    squared_wasserstein2_normal,
)
from .gaussian.full import (
    bhattacharyya_mvn,
    kl_mvn,
    kl_mvn_from_scale_tril,
    renyi_mvn,
    squared_hellinger_mvn,
)
from .gaussian.wasserstein import squared_wasserstein2_mvn
from .latent import (
    KLDecomposition,
    decompose_kl,
    effective_sample_size,
    importance_weighted_bound,
    log_mean_exp,
)
from .samples.estimate import KLEstimate, TermSummary, summarise_terms
from .samples.estimators import (
    kl_loss,
    log_ratio_estimator,
    rao_blackwell_kl,
    reparameterized_kl,
    sequence_kl_surrogate,
)
from .samples.knn import kl_knn, mutual_information_knn
from .samples.variational import (
    Critic,
    MINEState,
    dv_bound,
    infonce_bound,
    mine_loss,
    nwj_bound,
    smile_bound,
)
from .sinkhorn import sinkhorn_divergence
from .transport import wasserstein_1d
from .vocabulary.hidden_states import fused_linear_js, fused_linear_kl, fused_linear_skew_kl
from .vocabulary.logits import chunked_js, chunked_kl, chunked_skew_kl
from .vocabulary.topk import kl_topk
from .weight.controllers import AdaptiveKL, PPOPenalty, kl_early_stop
from .weight.schedules import (
    Annealing,
    capacity_penalty,
    constant,
    cosine,
    cyclical,
    free_bits,
    linear,
)

__all__ = sorted(  # the names that are imported above, without the modules
    name for name, value in globals().items() if not (name.startswith("_") or _ismodule(value))
)
