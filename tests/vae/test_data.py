import itertools
import math

import pytest
import torch
from scipy.stats import binom

from vae import data

LEVELS, DRAWS = 256, 40_000


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawn():
    """[DRAWS, 256]: column g holds draws of grey level g."""
    return data.binarise(torch.arange(LEVELS, dtype=torch.uint8).repeat(DRAWS, 1), rng())


def test_every_grey_level_has_its_frequency(drawn):
    counts = drawn.sum(0)
    # Two tails of 1e-7 each for 256 levels: one failure in 20,000 correct implementations.
    for level in range(1, 255):
        low, high = binom.interval(1 - 2e-7, DRAWS, level / 255)
        assert low <= counts[level] <= high, level
    z = (counts[1:255] - DRAWS * torch.arange(1, 255) / 255) / torch.tensor(
        [math.sqrt(DRAWS * (g / 255) * (1 - g / 255)) for g in range(1, 255)]
    )
    assert z.square().sum() < 254 + 4 * math.sqrt(2 * 254)
    assert abs(z.sum()) < 4 * math.sqrt(254)


def test_black_and_white_are_certain(drawn):
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 255] == 1).all()


def test_the_probability_of_each_level_is_the_documented_one():
    # The 2**15 equally likely comparisons, all of them, instead of random bits.
    level = torch.arange(LEVELS, dtype=torch.uint8).repeat(2**15, 1)
    every = torch.arange(-(2**15), 2**15, 2, dtype=torch.int32).to(torch.int16)
    bits = every[:, None].expand(2**15, LEVELS).contiguous().view(torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "random_", lambda self, *_, **__: self.copy_(bits))
        share = data.binarise(level, rng()).double().mean(0)
    exact = torch.arange(LEVELS).double() / 255
    assert (share - exact).abs().max() < 1.6e-5


def test_neighbours_and_rows_are_independent():
    grey = torch.full((20_000, 8), 128, dtype=torch.uint8)  # two 64-bit draws of four pixels
    signs = 2 * data.binarise(grey, rng(1)) - 1
    pairs = [(signs[:, a] * signs[:, b]).mean() for a, b in itertools.combinations(range(8), 2)]
    pairs += [(signs[1:, a] * signs[:-1, b]).mean() for a, b in itertools.product(range(8), (0, 7))]
    assert max(map(abs, pairs)) < 4.5 / math.sqrt(20_000)
    unlike = torch.tensor([250, 3, 128, 40], dtype=torch.uint8).repeat(20_000, 1)
    correlation = torch.corrcoef(data.binarise(unlike, rng(2)).T) - torch.eye(4)
    assert correlation.abs().max() < 4.5 / math.sqrt(20_000)


def test_the_generator_decides_and_moves_on():
    grey = torch.full((10, 784), 100, dtype=torch.uint8)
    one, other = rng(5), rng(5)
    first = data.binarise(grey, one)
    assert torch.equal(first, data.binarise(grey, other))
    assert not torch.equal(first, data.binarise(grey, one))
    assert not torch.equal(first, data.binarise(grey, rng(6)))
    assert first.shape == grey.shape
    assert first.dtype == torch.float32


def test_observe_grey_is_grey_over_255():
    grey = torch.arange(LEVELS, dtype=torch.uint8)[None]
    torch.testing.assert_close(
        data.observe(grey, "grey", rng()), torch.linspace(0, 1, 256)[None], rtol=0, atol=1e-7
    )


def test_the_test_digits_are_binarised_once_for_all():
    grey = torch.randint(0, 256, (50, 784), generator=rng(3), dtype=torch.uint8)
    torch.manual_seed(1)
    first = data.test_view(grey, "binarised")
    torch.manual_seed(2)
    assert torch.equal(first, data.test_view(grey, "binarised"))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    # The first rows stay the same when fewer digits are looked at.
    assert torch.equal(first[:20], data.test_view(grey[:20], "binarised"))
