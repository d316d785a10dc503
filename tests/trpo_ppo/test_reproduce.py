import numpy as np
import pytest

from trpo_ppo.reproduce import TASKS, VARIANTS, command, interval, normalise


def test_normalised_scores_put_random_at_zero_and_the_best_run_at_one():
    scores = {"a": np.array([[10.0, 30.0], [-5.0, -3.0]]), "b": np.array([[0.0, 50.0], [-9, -4.0]])}
    found = normalise(scores, np.array([10.0, -13.0]))
    np.testing.assert_allclose(found["a"], [[0, 0.5], [0.8, 1.0]])
    np.testing.assert_allclose(found["b"], [[-0.25, 1.0], [0.4, 0.9]])


def test_interval_of_a_mean():
    assert interval(np.full((7, 3), 0.5)) == (0.5, 0.5)
    scores = np.random.default_rng(1).normal(size=(1, 200))
    low, high = interval(scores)
    assert low < scores.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / 200**0.5, rel=0.05)


def test_every_run_has_a_command():
    assert len(TASKS) == 7
    assert [VARIANTS[v][2] for v in VARIANTS] == [-0.39, 0.82, 0.74, 0.71, 0.72, None]
    expected = "paper --algo ppo-kl --beta 0 --env Hopper-v5 --seed 2 --steps 1000"
    assert command("none", "Hopper-v5", 2, 1000) == expected.split()
