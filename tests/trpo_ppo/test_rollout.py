"""Environments that count prove that nothing crosses an episode; replay brings them back."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shared.errors import UserError
from trpo_ppo.envs import Environments, columns, make
from trpo_ppo.policy import Agent
from trpo_ppo.rollout import collect, finished, prepare, reward_scale, rows
from trpo_ppo.state import State

# Length and kind of end of every episode in turn: terminated, cut by the limit of 6, or both.
ENDS = [(3, "terminated"), (6, "truncated"), (1, "terminated"), (6, "both"), (4, "terminated")]


class Counting(gym.Env):
    """Observation: (environment's tag, episode, steps in it). Reward: 100 episode + step."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.episode, self.steps, self.tag, self.last = -1, 0, -1.0, None

    def _seen(self):
        return np.array([self.tag, self.episode, self.steps], dtype=np.float64)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.tag = float(self.np_random.random())
        self.episode, self.steps, self.last = self.episode + 1, 0, None
        return self._seen(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        assert self.last is None, "stepped after the end"
        self.steps += 1
        length, kind = ENDS[self.episode % len(ENDS)]
        over = self.steps == length and kind in ("terminated", "both")
        self.last = over or None
        return self._seen(), 100.0 * self.episode + self.steps, over, False, {}


class Broken(Counting):
    what = "observation"

    def step(self, action):
        seen, reward, *rest = super().step(action)
        if self.steps == 3:
            seen, reward = (seen * np.nan, reward) if self.what == "observation" else (seen, np.inf)
        return seen, reward, *rest


for name, kind in (("Counting-v0", Counting), ("Broken-v0", Broken)):
    gym.register(name, entry_point=kind, max_episode_steps=6)


@pytest.fixture
def agent():
    torch.manual_seed(0)
    return Agent(3, 2, "gaussian", width=8, depth=1)


def expected_history(steps):
    """(episode, observation's step, reward, end) of a run of ``steps`` steps, by hand."""
    history, episode, step = [], 0, 0
    for _ in range(steps):
        length, kind = ENDS[episode % len(ENDS)]
        end = kind if step + 1 == length else ""
        history.append((episode, step, 100.0 * episode + step + 1, end))
        episode, step = (episode + 1, 0) if end else (episode, step + 1)
    return history


def test_no_transition_crosses_an_episode(agent):
    envs = Environments("Counting-v0", 0, [0, 1, 2], 0.9)
    history = expected_history(46)
    ended = []
    for part in range(2):
        rollout = collect(agent, envs, 23, 3, 0, part)
        out = rollout.columns
        for i in range(3):
            discounted = 0.0
            for t, (episode, step, reward, end) in enumerate(history[23 * part : 23 * part + 23]):
                tag, *seen = rollout.raw[t, i]
                assert seen == [episode, step], (t, i)
                assert out.rewards[t, i] == reward
                assert out.terminated[t, i] == (end in ("terminated", "both"))
                assert out.truncated[t, i] == (end == "truncated")
                discounted = reward + (0.9 * discounted if step else 0.0)
                if part == 0:
                    assert out.discounted[t, i] == pytest.approx(discounted)
                if step:  # one tag, so one episode's seed, from reset to end
                    assert tag == rollout.raw[t - 1, i, 0] or t == 0
        ended += [
            (23 * part + t, e.env, e.observation.tolist()[1:], e.total, e.length)
            for t, e in rollout.ended
        ]
        # The observation after the rollout is the next rollout's first.
        assert np.array_equal(rollout.after, envs.observations.astype(np.float32))
    lengths = iter(ended)
    for t, (episode, step, _, end) in enumerate(history):
        if end:
            total = sum(100.0 * episode + k + 1 for k in range(step + 1))
            for i in range(3):
                assert next(lengths) == (t, i, [episode, step + 1], total, step + 1)
    assert next(lengths, None) is None


def test_what_is_bootstrapped(agent):
    """next value: V(last observation) where cut, 0 where terminated, V(next row) elsewhere."""
    envs = Environments("Counting-v0", 0, [0, 1], 0.9)
    rollout = collect(agent, envs, 23, 2, 0, 0)
    # With lam = 0 and V from the critic, advantages reveal the bootstrap.
    batch = prepare(agent, rollout, 1.0, 46, 0.9, 0.0, 0)
    value = agent.values(rows(torch.from_numpy(rollout.observations))).view(2, 23)
    for t, (episode, step, reward, end) in enumerate(expected_history(23)):
        for i in range(2):
            if end in ("terminated", "both"):
                bootstrap = 0.0
            elif end == "truncated":
                last = [rollout.raw[t, i, 0], episode, step + 1]
                bootstrap = agent.values(torch.tensor([last], dtype=torch.float32)).item()
            elif t == 22:
                bootstrap = agent.values(torch.from_numpy(rollout.after[i : i + 1])).item()
            else:
                bootstrap = value[i, t + 1].item()
            assert batch.targets.view(2, 23)[i, t].item() == pytest.approx(
                reward + 0.9 * bootstrap, rel=1e-5
            ), (t, i)


def test_rows_are_environment_by_environment(agent):
    envs = Environments("Counting-v0", 0, [0, 1], 0.9)
    rollout = collect(agent, envs, 5, 2, 0, 0)
    batch = prepare(agent, rollout, 1.0, 10, 0.9, 0.9, 0)
    assert torch.equal(batch.observations[:5], torch.from_numpy(rollout.observations[:, 0]))
    assert torch.equal(batch.actions[5:], torch.from_numpy(rollout.actions[:, 1]))
    assert batch.advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert batch.advantages.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_the_ratio_is_exactly_one_before_the_update(agent):
    envs = Environments("Counting-v0", 0, [0, 1], 0.9)
    batch = prepare(agent, collect(agent, envs, 16, 2, 0, 0), 1.0, 32, 0.9, 0.9, 0)
    new = agent.policy(batch.observations)
    assert torch.equal(new.log_prob(batch.actions), batch.log_prob)
    assert batch.old.kl(new).abs().max() == 0


@pytest.mark.parametrize("name", ["CartPole-v1", "Hopper-v5", "Acrobot-v1"])
def test_equal_to_gymnasiums_same_step_autoreset(name):
    """Same observations, rewards and ends as SyncVectorEnv, given the same seeds of episodes."""
    n, time = 3, 400
    ours = Environments(name, 5, range(n), 0.99)
    seeds = [
        [int(np.random.SeedSequence((5, 3, i, e + 1)).generate_state(1)[0]) for e in range(time)]
        for i in range(n)
    ]

    class Seeded(gym.Wrapper):
        def __init__(self, env, own):
            super().__init__(env)
            self.own = iter(own)

        def reset(self, **_):
            return super().reset(seed=next(self.own))

    theirs = SyncVectorEnv(
        [lambda i=i: Seeded(make(name), seeds[i]) for i in range(n)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    seen, _ = theirs.reset()
    rng, out = np.random.default_rng(0), columns(time, n)
    assert np.array_equal(seen, ours.observations)
    for t in range(time):
        if ours.interface.kind == "gaussian":
            actions = rng.uniform(-1, 1, (n, ours.interface.width)).astype(np.float32)
            given = actions
        else:
            actions = rng.integers(0, ours.interface.actions, (n, 1)).astype(np.float32)
            given = actions[:, 0].astype(np.int64)
        ended = ours.step(actions, out, t)
        seen, rewards, terminated, truncated, info = theirs.step(given)
        assert np.array_equal(seen, ours.observations)
        assert np.array_equal(rewards, out.rewards[t])
        assert np.array_equal(terminated, out.terminated[t])
        assert np.array_equal(truncated & ~terminated, out.truncated[t])
        for episode in ended:
            assert np.array_equal(info["final_obs"][episode.env], episode.observation)
    theirs.close()
    ours.close()


@pytest.mark.parametrize("name", ["CartPole-v1", "Hopper-v5", "LunarLander-v3", "Pendulum-v1"])
def test_restored_environments_go_on_as_the_first_ones(name):
    envs = Environments(name, 1, [4, 2], 0.99)
    spaces = envs.interface
    agent = Agent(spaces.observations, spaces.actions, spaces.kind, normalise=False)
    collect(agent, envs, 70, 5, 0, 0)
    state = State(agent, envs, 2, 1.0)
    state.remember(envs, torch.zeros(0))
    other = Environments(name, 1, [4, 2], 0.99)
    other.indices = [0, 1]  # rows of the state's buffers
    stood = {name: np.copy(x) for name, x in envs.state().items()}
    other.indices = [4, 2]
    other.restore(**stood)
    ours, theirs = (collect(agent, e, 90, 5, 0, 1) for e in (envs, other))
    assert np.array_equal(ours.raw, theirs.raw)
    assert np.array_equal(ours.columns.rewards, theirs.columns.rewards)
    assert np.array_equal(ours.columns.discounted, theirs.columns.discounted)
    assert [e.total for _, e in ours.ended] == [e.total for _, e in theirs.ended]
    for mine, its in zip(envs.state().values(), other.state().values(), strict=True):
        assert np.array_equal(mine, its)


def test_scores_and_reward_scale(agent):
    envs = Environments("Counting-v0", 0, [0, 1], 0.9)
    state = State(agent, envs, 2, 1.0)
    assert np.isnan(state.score())
    rollout = collect(agent, envs, 23, 2, 0, 0)
    scores = finished(rollout)
    each = [6.0, 621.0, 201.0, 1821.0, 1610.0, 1506.0]  # in order of time, then of environment
    assert scores.tolist() == [score for score in each for _ in range(2)]
    state.remember(envs, scores)
    assert state.score() == pytest.approx(scores.mean().item())
    scale = reward_scale(rollout, state.returns)
    assert scale == pytest.approx(1 / rollout.columns.discounted.std(), rel=1e-6)


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_what_is_not_finite_is_refused(what, agent, monkeypatch):
    monkeypatch.setattr(Broken, "what", what)
    envs = Environments("Broken-v0", 0, [0], 0.9)
    with pytest.raises(UserError, match=f"--env Broken-v0: gave a non-finite {what}"):
        collect(agent, envs, 8, 1, 0, 0)


def test_make_names_the_culprit():
    with pytest.raises(UserError, match=r"--env Hoper-v5: .* did you mean Hopper-v5\?"):
        make("Hoper-v5")
    with pytest.raises(
        UserError,
        match=r"--env PongNoFrameskip-v4: .* no such environment; one of yours is MODULE:NAME",
    ):
        make("PongNoFrameskip-v4")


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    import sys

    from trpo_ppo.video import film

    agent = Agent(4, 2, "categorical")
    monkeypatch.setattr(
        "trpo_ppo.video.make", lambda *_, **__: (_ for _ in ()).throw(AttributeError("no EGL"))
    )
    with pytest.raises(UserError, match=r"CartPole-v1 cannot be rendered here .*no EGL"):
        film(agent, "CartPole-v1", tmp_path / "a.gif", 0)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"--env Hopper-v5: .*mujoco"):
        make("Hopper-v5")
