"""The chunked divergences beside the same by autograd on whole tensors."""

import functools

import torch

from shared.kl.categorical import formulas
from shared.kl.categorical.apply import apply_formula
from shared.kl.categorical.pairs import pair_from_logits
from shared.kl.vocabulary.logits import chunked_js, chunked_kl, chunked_skew_kl


def whole_kl(p_logits, q_logits, **options):
    """By the formula in torch's operations; ``kl_from_logits`` has the kernels of the chunks."""
    return apply_formula(formulas.kl, pair_from_logits, (p_logits, q_logits), options)


def whole_js(p_logits, q_logits, weight=0.5, **options):
    return apply_formula(
        lambda pair: formulas.js(pair, weight), pair_from_logits, (p_logits, q_logits), options
    )


def whole_skew(p_logits, q_logits, weight=0.5, **options):
    return apply_formula(
        lambda pair: formulas.skew_kl(pair, weight), pair_from_logits, (p_logits, q_logits), options
    )


# name -> (chunked, the same by autograd on whole tensors)
ALL = {
    "kl": (chunked_kl, whole_kl),
    "js": (functools.partial(chunked_js, weight=0.3), functools.partial(whole_js, weight=0.3)),
    "skew": (
        functools.partial(chunked_skew_kl, weight=0.3),
        functools.partial(whole_skew, weight=0.3),
    ),
}


def logits(shape, scale=1.0, dtype=torch.float64, seed=0):
    """Teacher and student, ``scale`` apart."""
    rng = torch.Generator().manual_seed(seed)
    a = 3 * torch.randn(shape, generator=rng, dtype=torch.float64)
    b = a + scale * torch.randn(shape, generator=rng, dtype=torch.float64)
    return a.to(dtype), b.to(dtype)


def value_and_gradient(function, a, b, student, weights=None, **options):
    pair = [a.clone(), b.clone()]
    pair[student].requires_grad_()
    value = function(*pair, **options)
    weights = torch.ones_like(value) if weights is None else weights.to(value.dtype)
    finite = torch.where(value.isfinite(), value, 0.0)
    (gradient,) = torch.autograd.grad((finite * weights).sum(), pair[student])
    return value.detach(), gradient


def agree(name, a, b, student, rtol=1e-12, atol=1e-14, **options):
    """Chunked equals whole, value and gradient; the whole one in float64."""
    chunked, whole = ALL[name]
    weights = torch.linspace(0.1, 2, a[..., 0].numel()).view(a.shape[:-1])
    value, gradient = value_and_gradient(chunked, a, b, student, weights, **options)
    wide = (a.double(), b.double())
    expected, slope = value_and_gradient(whole, *wide, student, weights, **options)
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient.double(), slope, rtol=rtol, atol=atol)
    return value, gradient
