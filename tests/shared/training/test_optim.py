import itertools
import math

import pytest
import torch
from torch import nn

from shared.training.optim import muon_and_adam, set_rates, warmup_cosine


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2))


def test_warmup_goes_up_in_equal_steps_to_one():
    assert [warmup_cosine(step, 4, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_cosine_ends_at_zero_and_is_a_half_in_the_middle():
    assert warmup_cosine(60, 20, 100) == pytest.approx(0.5)
    assert warmup_cosine(100, 20, 100) == pytest.approx(0, abs=1e-15)
    assert warmup_cosine(99, 20, 100) > 0


def test_cosine_never_rises_and_is_steepest_in_the_middle():
    values = [warmup_cosine(step, 10, 110) for step in range(10, 111)]
    falls = [a - b for a, b in itertools.pairwise(values)]
    assert min(falls) > 0
    assert max(falls) == pytest.approx(math.pi / 200, rel=1e-3)
    assert max(falls) == max(falls[45:55])


def test_no_warmup_starts_at_the_peak():
    assert warmup_cosine(0, 0, 10) == 1


def test_a_run_of_warmup_alone_has_no_division_by_zero():
    assert [warmup_cosine(step, 2, 2) for step in range(2)] == [0.5, 1]


def test_every_parameter_is_in_exactly_one_group():
    model = network()
    matrices = [model[1].weight, model[2].weight]
    optimizers = muon_and_adam(model, matrices, muon_lr=0.02, lr=1e-3)
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    muon = next(o for o in optimizers if isinstance(o, torch.optim.Muon))
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(p) for p in matrices]


def test_no_matrices_is_adam_alone():
    model = network()
    (adam,) = muon_and_adam(model, [], muon_lr=0.02, lr=1e-3)
    assert isinstance(adam, torch.optim.Adam)
    assert len(adam.param_groups[0]["params"]) == len(list(model.parameters()))


def test_set_rates_scales_each_peak_and_not_the_last_rate():
    model = network()
    optimizers = muon_and_adam(model, [model[1].weight], muon_lr=0.02, lr=1e-3)
    for factor in (0.5, 0.5, 0.0, 1.0):
        set_rates(optimizers, factor)
        rates = [group["lr"] for o in optimizers for group in o.param_groups]
        assert rates == pytest.approx([1e-3 * factor, 0.02 * factor])


def test_nothing_decays():
    # With a zero gradient, only weight decay could move a parameter.
    model = network()
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in muon_and_adam(model, [model[1].weight], muon_lr=0.02, lr=1e-3):
        optimizer.step()
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
