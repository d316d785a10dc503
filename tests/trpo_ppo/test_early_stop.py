"""PPO leaves its passes over a rollout by the KL over all states of all processes."""

from dataclasses import replace

import pytest
import torch

from trpo_ppo import ppo as update
from trpo_ppo.config import presets
from trpo_ppo.policy import Agent
from trpo_ppo.ppo import mean_kl, ppo_update
from trpo_ppo.rollout import Batch

ROWS, PASSES = 64, 5


def setting():
    """An agent, its optimiser and a batch of its own actions; minibatches of half the batch."""
    torch.manual_seed(0)
    agent = Agent(4, 3, "gaussian", width=8)
    observations = torch.randn(ROWS, 4)
    old = agent.policy(observations).detach()
    actions = old.mean + torch.randn(ROWS, 3)
    batch = Batch(
        observations,
        actions,
        old,
        old.log_prob(actions),
        torch.randn(ROWS),
        torch.randn(ROWS),
        torch.zeros(ROWS),
        ROWS,
        0,
    )
    optimizer = torch.optim.Adam([agent.critic.flat, *agent.policy_parameters()], lr=1e-2)
    config = replace(
        presets("Hopper-v5", "ppo-clip")["default"], minibatch=ROWS // 2, epochs=PASSES
    )
    return agent, optimizer, batch, config


def kl_after(passes: int) -> float:
    agent, optimizer, batch, config = setting()
    ppo_update(replace(config, epochs=passes), agent, optimizer, batch, 0.0, 0)
    return mean_kl(agent, batch)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_it_stops_after_the_pass_that_went_beyond_one_and_a_half_times_the_target(stop_after):
    kl = [kl_after(passes) for passes in range(1, PASSES + 1)]
    assert kl == sorted(kl)  # so that one target names one pass
    between = (kl[stop_after - 1] + (kl[stop_after - 2] if stop_after > 1 else 0)) / 2
    agent, optimizer, batch, config = setting()
    config = replace(config, early_stop=between / 1.5)
    metrics = ppo_update(config, agent, optimizer, batch, 0.0, 0)
    assert metrics["gradient_steps"] == 2 * stop_after
    assert mean_kl(agent, batch) == kl[stop_after - 1]


def test_without_it_all_passes_are_made():
    for target in (0.0, 1e3):  # off, and never reached
        agent, optimizer, batch, config = setting()
        metrics = ppo_update(replace(config, early_stop=target), agent, optimizer, batch, 0.0, 0)
        assert metrics["gradient_steps"] == 2 * PASSES


def test_another_processs_kl_decides_too(monkeypatch: pytest.MonkeyPatch):
    """Own KL far below the target; the sum over processes is beyond it."""
    agent, optimizer, batch, config = setting()
    target = 10 * kl_after(PASSES)
    theirs = 2 * 1.5 * target * ROWS
    monkeypatch.setattr(update, "all_reduce_sum", lambda x: x if x.dim() else x + theirs)
    metrics = ppo_update(replace(config, early_stop=target), agent, optimizer, batch, 0.0, 0)
    assert metrics["gradient_steps"] == 2
