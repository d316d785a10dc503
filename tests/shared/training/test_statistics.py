import numpy as np
import torch

from shared.training.statistics import RunningMoments


def test_merged_batches_are_the_concatenation():
    rng = np.random.default_rng(0)
    batches = [5 * rng.standard_normal((n, 3)) + 1e4 for n in (1, 7, 100, 2)]
    moments = RunningMoments(3)
    for batch in batches:
        moments.update(torch.from_numpy(batch))
    whole = np.concatenate(batches)
    assert moments.count == len(whole)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-10)


def test_shift_and_scale_standardise():
    moments = RunningMoments(2)
    x = torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]])
    assert not moments.shift_and_scale()[0].any()
    assert torch.equal(moments.variance, torch.ones(2, dtype=torch.float64))
    moments.update(x)
    shift, scale = moments.shift_and_scale()
    z = (x.numpy() - shift) * scale
    np.testing.assert_allclose(z[:, 0].std(), 1, rtol=1e-6)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-7)
    assert not z[:, 1].any()  # never changed


def test_the_state_goes_through_a_checkpoint():
    moments, other = RunningMoments(2), RunningMoments(2)
    moments.update(torch.randn(10, 2))
    other.load_state_dict(moments.state_dict())
    assert torch.equal(other.variance, moments.variance)
