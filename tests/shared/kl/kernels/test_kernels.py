"""The kernels against the formulas in float64: values, gradients to both arguments, edges."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import shared.kl as K
from shared.kl.categorical import formulas
from shared.kl.categorical.apply import apply_formula
from shared.kl.categorical.pairs import pair_from_logits, pair_from_probs, single_from_logits

INF = math.inf


def js_formula(weight):
    return lambda pair: formulas.js(pair, weight)


# name: (the function, its formula, how distributions are read, from logits)
FUNCTIONS = {
    "kl": (K.kl_from_logits, formulas.kl, pair_from_logits),
    "js": (K.js_from_logits, js_formula(0.5), pair_from_logits),
    "js of 0.9": (
        lambda p, q, **options: K.js_from_logits(p, q, 0.9, **options),
        js_formula(0.9),
        pair_from_logits,
    ),
    "skew": (K.skew_kl_from_logits, lambda pair: formulas.skew_kl(pair, 0.1), pair_from_logits),
    "skew of 0.7": (
        lambda p, q, **options: K.skew_kl_from_logits(p, q, 0.7, **options),
        lambda pair: formulas.skew_kl(pair, 0.7),
        pair_from_logits,
    ),
    "entropy": (
        lambda p, _, **options: K.entropy_from_logits(p, **options),
        None,
        single_from_logits,
    ),
    "kl of probabilities": (K.kl_from_probs, formulas.kl, pair_from_probs),
}
SHAPES = {"few": (3, 7), "many": (12, 6000), "chunks": (40, 9000)}


def expected(name, p, q, weights, **options):
    """Value and gradients by autograd of the formula in float64."""
    _, formula, read = FUNCTIONS[name]
    leaves = [tensor.double().requires_grad_() for tensor in (p, q)]
    if name == "entropy":
        value = apply_formula(formulas.entropy, read, tuple(leaves[:1]), options)
    else:
        value = apply_formula(formula, read, tuple(leaves), options)
    finite = torch.where(value.isfinite(), value, 0.0)
    gradients = torch.autograd.grad((finite * weights).sum(), leaves, allow_unused=True)
    return value.detach(), gradients


def found(name, p, q, weights, **options):
    leaves = [tensor.clone().requires_grad_() for tensor in (p, q)]
    value = FUNCTIONS[name][0](*leaves, **options)
    finite = torch.where(value.isfinite(), value, 0.0)
    gradients = torch.autograd.grad(
        (finite * weights.to(value.dtype)).sum(), leaves, allow_unused=True
    )
    return value.detach(), gradients


def agree(name, p, q, rtol, of_gradient, least=0.0, **options):
    """Relative errors of values, and of gradients in proportion to their rows' norms.

    Args:
        least: an error of the gradient that is always allowed: where one outcome is certain, the
            derivatives are differences of probabilities that are 1 but for rounding.
    """
    if name == "kl of probabilities" and p.min() < 0:
        p, q = p.softmax(-1), q.softmax(-1)
    weights = torch.linspace(0.5, 2, len(p), dtype=torch.float64)
    value, gradients = found(name, p, q, weights, **options)
    right, slopes = expected(name, p, q, weights, **options)
    torch.testing.assert_close(value.double(), right, rtol=rtol, atol=1e-3 * rtol**2)
    for gradient, slope in zip(gradients, slopes, strict=True):
        if slope is None or gradient is None:
            assert slope is None
            assert gradient is None
            continue
        error = (gradient.double() - slope).norm(dim=-1)
        assert (error <= of_gradient * slope.norm(dim=-1) + least + 1e-3 * of_gradient**2).all()


def logits(shape, scale, gap, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    p = scale * torch.randn(shape, generator=rng, dtype=torch.float64)
    q = p + gap * torch.randn(shape, generator=rng, dtype=torch.float64)
    return p.to(dtype), q.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gap", [3.0, 1.0, 0.3, 0.1, 0.01, 1e-4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_is_right_to_rounding_at_every_distance(name, gap, shape):
    least = 1e-7 if "skew" in name else 0.0  # its gradient is a difference from a mean
    for scale in (1.0, 6.0):
        pair = logits(SHAPES[shape], scale, gap)
        agree(name, *pair, rtol=3e-6, of_gradient=1e-5, least=least)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gap", [3.0, 0.3, 0.01, 1e-6])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_right_to_rounding_at_every_distance(name, gap, shape):
    pair = logits(SHAPES[shape], 3.0, gap, torch.float64)
    agree(name, *pair, rtol=2e-11, of_gradient=1e-11, least=1e-15)


@pytest.mark.parametrize("shape", ["few", "many"])
@pytest.mark.parametrize("gap", [1.0, 1e-2])
@pytest.mark.parametrize("name", ["kl", "js"])
def test_a_shift_of_all_logits_changes_no_digit(name, gap, shape):
    p, q = logits(SHAPES[shape], 1.0, gap)
    agree(name, p, q + 300, rtol=5e-6, of_gradient=2e-6)


@pytest.mark.parametrize("name", ["kl", "js", "entropy"])
@pytest.mark.parametrize("shape", ["few", "many"])
def test_a_temperature(name, shape):
    agree(name, *logits(SHAPES[shape], 3.0, 0.2), rtol=5e-6, of_gradient=5e-6, temperature=0.7)


CASES = ["both", "only p", "only q", "padded", "certain", "nothing in common", "rows differ"]


def exclude(p, q, case):
    match case:
        case "both":
            p[:, ::3] = q[:, ::3] = -INF
        case "only p":
            p[:, ::3] = -INF
        case "only q":
            q[:, ::3] = -INF
        case "padded":
            p[:, 1:4] = -1e4
        case "certain":
            p[:, 1:] -= 30
        case "nothing in common":
            p[:, ::2] = q[:, 1::2] = -INF
        case "rows differ":
            p[0, ::3] = q[1, ::4] = p[2, ::2] = q[2, ::2] = -INF
    return p, q


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", ["few", "many"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_excluded_categories(name, shape, case):
    for gap in (1.0, 1e-3):
        p, q = exclude(*logits(SHAPES[shape], 2.0, gap), case)
        agree(name, p, q, rtol=3e-6, of_gradient=5e-6, least=6e-7)


@pytest.mark.parametrize("shape", ["few", "many"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_at_equal_arguments_and_never_below(name, shape):
    p, _ = logits(SHAPES[shape], 3.0, 0.0)
    if name == "kl of probabilities":
        p = p.softmax(-1)
    value, gradients = found(name, p, p.clone(), torch.ones(len(p)))
    if name != "entropy":
        assert (value == 0).all()
        assert all(gradient.abs().max() < 1e-6 for gradient in gradients)
    for seed in range(20):
        near = torch.nextafter(p, p + 1 if seed % 2 else p - 1)
        assert (found(name, p, near, torch.ones(len(p)))[0] >= 0).all()


@pytest.mark.parametrize("shape", ["few", "many"])
def test_equal_probabilities_of_which_some_are_zero(shape):
    p = logits(SHAPES[shape], 2.0, 0.0)[0].softmax(-1)
    p[:, ::3] = 0
    p[0], p[0, 0] = 0, 1
    value, (to_p, to_q) = found("kl of probabilities", p, p.clone(), torch.ones(len(p)))
    assert (value == 0).all()
    assert (to_p == 0).all()
    assert (to_q[p > 0] == 0).all()
    assert (to_q[p == 0] == 1).all()  # the derivative of p log(p / q) - p + q at p = 0


@pytest.mark.parametrize("shape", ["few", "many"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_masks_and_reductions(name, shape):
    p, q = logits(SHAPES[shape], 2.0, 1.0)
    if name == "kl of probabilities":
        p, q = p.softmax(-1), q.softmax(-1)
    mask = torch.arange(len(p)) % 3 > 0
    dirty_p, dirty_q = p.clone(), q.clone()
    dirty_p[~mask], dirty_q[~mask] = torch.nan, INF
    for reduction in ("none", "sum", "batchmean", "positionmean"):
        leaves = [dirty_p.clone().requires_grad_(), dirty_q.clone().requires_grad_()]
        function = FUNCTIONS[name][0]
        value = function(*leaves, mask=mask, reduction=reduction, unit="bits")
        value.sum().backward()
        clean = [p[mask].double().requires_grad_(), q[mask].double().requires_grad_()]
        count = {"batchmean": len(p), "positionmean": int(mask.sum())}.get(reduction, 1)
        whole = function(*clean) / (math.log(2) * count)
        whole.sum().backward()
        torch.testing.assert_close(value.double().sum(), whole.sum(), rtol=1e-5, atol=0)
        for leaf, right in zip(leaves, clean, strict=True):
            if right.grad is None:
                continue
            torch.testing.assert_close(leaf.grad[mask].double(), right.grad, rtol=1e-3, atol=1e-6)
            assert (leaf.grad[~mask] == 0).all()


@pytest.mark.parametrize("shape", ["few", "many"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_backward_again_and_twice(name, shape):
    p, q = logits(SHAPES[shape], 1.0, 0.5, torch.float64)
    p, q = p[:3, :7], q[:3, :7]
    if name == "kl of probabilities":
        p, q = p.softmax(-1), q.softmax(-1)
    leaves = [p.requires_grad_(), q.requires_grad_()][: 1 if name == "entropy" else 2]
    function = FUNCTIONS[name][0]
    value = function(*(leaves * 2)[:2], reduction="batchmean")
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves, 2 * torch.ones_like(value))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, two)
    assert torch.autograd.gradcheck(lambda *x: function(*(x * 2)[:2]), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: function(*(x * 2)[:2]), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_empty_batches_and_batches_of_which_nothing_counts(name, dtype):
    function = FUNCTIONS[name][0]
    for shape, options in ((0, {}), (3, {"mask": torch.zeros(3, dtype=torch.bool)})):
        for reduction in ("none", "sum", "batchmean", "positionmean"):
            leaves = [torch.full((shape, 5), 0.2, dtype=dtype, requires_grad=True) for _ in "pq"]
            value = function(*leaves, reduction=reduction, **options)
            value.sum().backward()
            assert value.sum().item() == 0
            for leaf in leaves:
                assert leaf.grad is None or (leaf.grad == 0).all()


def test_of_one_argument_only_one_gradient_is_computed():
    p, q = logits(SHAPES["many"], 1.0, 0.5)
    q.requires_grad_()
    K.kl_from_logits(p, q, reduction="sum").backward()
    assert p.grad is None
    torch.testing.assert_close(q.grad, q.softmax(-1) - p.softmax(-1), rtol=1e-4, atol=1e-8)


def test_threads_do_not_share_their_memory():
    pairs = [logits((16, 5000), 2.0, 1.0, seed=seed) for seed in range(8)]
    right = [K.kl_from_logits(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for value, alone in zip(
                pool.map(lambda pair: K.kl_from_logits(*pair), pairs), right, strict=True
            ):
                assert torch.equal(value, alone)


def graph(node):
    """The nodes of autograd's graph from this one on."""
    return [node, *(more for part, _ in node.next_functions if part for more in graph(part))]


@pytest.mark.parametrize("shape", ["few", "many"])
@pytest.mark.parametrize("name", [*FUNCTIONS, "normal"])
def test_activation_checkpointing_keeps_nothing_and_changes_nothing(name, shape):
    p, q = logits(SHAPES[shape], 1.0, 0.5)
    function = FUNCTIONS[name][0] if name in FUNCTIONS else K.kl_standard_normal
    if name == "kl of probabilities":
        p, q = p.softmax(-1), q.softmax(-1)
    alone, inside = ([x.clone().requires_grad_() for x in (p, q)] for _ in "ab")
    function(*alone).sum().backward()
    value = checkpoint(lambda a, b: function(a, b).sum(), *inside, use_reentrant=False)
    nodes = [node for node in graph(value.grad_fn) if hasattr(node, "gradients")]
    assert nodes or name == "normal"
    assert all(node.gradients is None for node in nodes)
    assert name == "normal" or any(
        node.gradients is not None
        for node in graph(function(*inside).sum().grad_fn)
        if hasattr(node, "gradients")
    )
    value.backward()
    for one, other in zip(inside, alone, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)
