import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shared.kl.categorical.discrete import js_from_logits, kl_from_logits
from shared.kl.kernels import rows
from shared.kl.vocabulary import hidden_states as fused_linear
from shared.kl.vocabulary.hidden_states import fused_linear_js, fused_linear_kl

NAMES = ("p_hidden", "p_weight", "p_bias", "q_hidden", "q_weight", "q_bias")
SIDES = {"p": NAMES[:3], "q": NAMES[3:]}


def heads(batch=(3, 5), widths=(7, 4), vocabulary=60, dtype=torch.float64, bias=True, seed=0):
    rng = torch.Generator().manual_seed(seed)
    made = {}
    for side, width in zip("pq", widths, strict=True):
        shapes = (*batch, width), (vocabulary, width), (vocabulary,)
        for name, shape in zip(SIDES[side], shapes, strict=True):
            made[name] = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
        if not bias:
            made[SIDES[side][2]] = None
    return made


def naive(divergence, tensors, **options):
    """The logits of all positions, and autograd through them."""
    logits = [
        tensors[hidden] @ tensors[weight].T + (0 if tensors[bias] is None else tensors[bias])
        for hidden, weight, bias in SIDES.values()
    ]
    return divergence(*logits, **options)


def fused(divergence, tensors, **options):
    function = fused_linear_kl if divergence is kl_from_logits else fused_linear_js
    return function(**tensors, **options)


def gradients(function, divergence, tensors, wanted, **options):
    tensors = {k: None if v is None else v.clone() for k, v in tensors.items()}
    leaves = [tensors[name].requires_grad_() for name in wanted if tensors[name] is not None]
    value = function(divergence, tensors, **options)
    value = 1.5 * value  # an upstream gradient that is not one
    return value.detach(), torch.autograd.grad(value, leaves)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused_linear, "_CHUNK_ELEMENTS", 4 * 60)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", ["sum", "batchmean", "positionmean"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("divergence", [kl_from_logits, js_from_logits])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients_equal_those_of_the_whole_logits(divergence, side, reduction, masked):
    tensors = heads()
    options = {"temperature": 1.7, "reduction": reduction}
    if masked:
        options["mask"] = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    got = gradients(fused, divergence, tensors, SIDES[side], **options)
    expected = gradients(naive, divergence, tensors, SIDES[side], **options)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("small_chunks")
def test_float32_agrees_to_five_digits():
    tensors = heads(batch=(40,), dtype=torch.float32)
    got = gradients(fused, kl_from_logits, tensors, SIDES["q"], reduction="positionmean")
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    expected = gradients(naive, kl_from_logits, wide, SIDES["q"], reduction="positionmean")
    assert abs(got[0] / expected[0] - 1) < 1e-5
    for ours, theirs in zip(got[1], expected[1], strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wanted", [("q_hidden",), ("q_weight",), ("p_weight",)])
def test_only_what_requires_a_gradient_gets_one(wanted, bias):
    tensors = heads(bias=bias)
    got = gradients(fused, kl_from_logits, tensors, wanted, reduction="sum")
    expected = gradients(naive, kl_from_logits, tensors, wanted, reduction="sum")
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("small_chunks")
def test_values_without_gradient():
    tensors = heads()
    mask = torch.tensor([[True, True, False, True, False]]).expand(3, 5)
    for divergence in (kl_from_logits, js_from_logits):
        value = fused(divergence, tensors, mask=mask)
        torch.testing.assert_close(value, naive(divergence, tensors, mask=mask), rtol=1e-11, atol=0)
    with torch.no_grad():
        tensors["q_weight"].requires_grad_()
        assert fused_linear_kl(**tensors, reduction="none").shape == (3, 5)


def test_masked_positions_are_not_read():
    tensors = heads()
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    clean = gradients(fused, kl_from_logits, tensors, SIDES["q"], mask=mask, reduction="sum")
    tensors["p_hidden"][1] = torch.nan
    tensors["q_hidden"][1] = torch.inf
    dirty = gradients(fused, kl_from_logits, tensors, SIDES["q"], mask=mask, reduction="sum")
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    value, grads = gradients(
        fused, kl_from_logits, tensors, SIDES["q"], mask=nothing, reduction="positionmean"
    )
    assert value == 0
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.usefixtures("small_chunks")
def test_bfloat16_heads_sum_their_gradients_in_float32():
    tensors = heads(batch=(200,), dtype=torch.bfloat16)
    value, grads = gradients(fused, kl_from_logits, tensors, SIDES["q"], reduction="sum")
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    expected, slopes = gradients(naive, kl_from_logits, wide, SIDES["q"], reduction="sum")
    assert value.dtype == torch.float32
    assert abs(value / expected - 1) < 1e-2
    for ours, theirs in zip(grads, slopes, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest storage that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, storage)
        return result


def test_no_tensor_comes_near_the_size_of_the_logits(monkeypatch):
    monkeypatch.setattr(fused_linear, "_CHUNK_ELEMENTS", 2**17)
    monkeypatch.setattr(rows, "_kept", threading.local())  # may be that of a larger test
    n, vocabulary = 700, 20_000
    tensors = heads(batch=(n,), vocabulary=vocabulary, dtype=torch.float32, bias=False)
    with LargestTensor() as largest:
        gradients(fused, kl_from_logits, tensors, SIDES["q"], reduction="sum")
    assert largest.elements < 0.1 * n * vocabulary
    with LargestTensor() as largest:
        gradients(naive, kl_from_logits, tensors, SIDES["q"], reduction="sum")
    assert largest.elements >= n * vocabulary


def test_backward_runs_once():
    tensors = heads()
    tensors["q_weight"].requires_grad_()
    loss = fused_linear_kl(**tensors, reduction="sum")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_hidden": torch.zeros(3, 5, 6)}, "q_hidden of width 6"),
        ({"p_hidden": torch.zeros(2, 5, 7)}, "differ in positions"),
        ({"p_weight": torch.zeros(61, 7), "p_bias": None}, "differ in positions or vocabulary"),
        ({"q_bias": torch.zeros(4)}, "q_bias of shape"),
        ({"p_weight": torch.zeros(60)}, "p_hidden and p_weight must have shapes"),
        ({"p_hidden": torch.zeros(3, 5, 7, dtype=torch.int64)}, "p_hidden must be a floating"),
        ({"temperature": -1.0}, "temperature"),
        ({"reduction": "mean"}, "reduction"),
        ({"mask": torch.ones(3, 5)}, "mask must be bool"),
        ({"p_bias": torch.zeros(60, requires_grad=True)}, "a tensor of p and a tensor of q both"),
    ],
)
def test_bad_arguments_are_named(change, message):
    tensors = heads(dtype=torch.float32)
    tensors["q_weight"].requires_grad_()
    for function in (fused_linear_kl, fused_linear_js):
        with pytest.raises(ValueError, match=message):
            function(**tensors | {"reduction": "sum"} | change)
    with pytest.raises(ValueError, match="weight"):
        fused_linear_js(**tensors, weight=0.0, reduction="sum")


@pytest.mark.parametrize("student", ["p", "q"])
def test_each_position_has_its_own_weight_in_the_gradient(student):
    """reduction="none" and any function of the values, against autograd through the logits."""
    tensors = heads()
    names = [f"{student}_{part}" for part in ("hidden", "weight", "bias")]
    for name in names:
        tensors[name].requires_grad_()
    inputs = [tensors[name] for name in names]
    mask = torch.ones(tensors["p_hidden"].shape[:-1], dtype=torch.bool)
    mask[0, 1] = False

    def logits(side):
        hidden, weight, bias = (tensors[f"{side}_{part}"] for part in ("hidden", "weight", "bias"))
        return hidden @ weight.T + bias

    value = fused_linear_kl(**tensors, mask=mask, temperature=2.0)
    truth = kl_from_logits(logits("p"), logits("q"), mask=mask, temperature=2.0)
    torch.testing.assert_close(value, truth)
    found = torch.autograd.grad(value.square().sum(), inputs)
    wanted = torch.autograd.grad(truth.square().sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
