import itertools

import pytest
import torch

from shared.training.seeding import EVALUATION, NOISE, PERMUTATION, generator, permutation


def draws(*key, n=1000):
    return torch.randn(n, generator=generator("cpu", *key))


def test_a_key_gives_the_same_draws_every_time():
    assert torch.equal(draws(3, NOISE, 17), draws(3, NOISE, 17))


def test_the_global_generator_is_neither_used_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draws(1, NOISE, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(draws(1, NOISE, 5), first)


def test_neighbouring_keys_give_uncorrelated_draws():
    keys = list(itertools.product(range(4), (PERMUTATION, NOISE, EVALUATION), range(1, 5)))
    rows = torch.stack([draws(*key, n=4000) for key in keys])
    correlation = torch.corrcoef(rows) - torch.eye(len(keys))
    assert correlation.abs().max() < 5 / 4000**0.5


def test_first_draws_of_neighbouring_seeds_are_uniform():
    # What seeding the engine with consecutive integers does not give.
    first = torch.tensor(
        [torch.rand(1, generator=generator("cpu", seed, NOISE, 1)).item() for seed in range(2000)]
    )
    counts = torch.histc(first, 10, 0, 1)
    assert ((counts - 200).square() / 200).sum() < 27.9  # chi-squared with 9 degrees, p = 0.001
    lagged = torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]
    assert abs(lagged) < 4 / 2000**0.5


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_permutation_holds_every_index_once(n):
    assert permutation(n, 0, 0).sort().values.tolist() == list(range(n))


def test_permutations_differ_between_epochs_and_between_seeds():
    orders = [permutation(1000, seed, epoch) for seed in range(3) for epoch in range(3)]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).sum() < 12  # one place agrees on average
    assert torch.equal(permutation(1000, 2, 1), orders[7])
