"""Environments of somebody else's module: their names, spaces, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from shared.errors import UserError
from trpo_ppo.envs import Environments, interface, make, to_action, to_vector
from trpo_ppo.policy import Agent
from trpo_ppo.rollout import collect

MODULE = """
import copy

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence, Tuple

POINT = Box(-1.0, 1.0, (2,), np.float32)
SEEN = {
    "Point": POINT,
    "Choice": Discrete(4, start=2),
    "Choices": MultiDiscrete([3, 2]),
    "Bits": MultiBinary(5),
    "Table": Box(-1.0, 1.0, (3, 2), np.float64),
    "Parts": Dict({"where": POINT, "what": Discrete(3)}),
    "Pair": Tuple((Discrete(2), POINT)),
    "Image": Box(0, 255, (8, 8, 3), np.uint8),
    "Words": Sequence(Discrete(3)),
}
DONE = {
    "Point": Discrete(3, start=5),
    "Table": Box(np.float32([[-1, 0], [0, -2]]), np.float32([[1, 1], [3, 2]])),
    "Choices": Discrete(2),
    "Bits": MultiBinary(3),
}

class Env(gym.Env):
    def __init__(self, kind, fails=""):
        self.kind, self.fails = kind, fails
        if fails == "made":
            raise OSError("no such level")
        self.observation_space = copy.deepcopy(SEEN[kind])
        self.action_space = DONE.get(kind, Box(-1.0, 1.0, (2,), np.float32))

    def reset(self, seed=None, options=None):
        super().reset(seed=None if self.fails == "seed" else seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype)
                                          if not isinstance(action, int) else action), action
        if self.fails == "step":
            raise ZeroDivisionError("float division by zero")
        seen = np.zeros(7) if self.fails == "shape" else self.observation_space.sample()
        return seen, float(np.sum(action)), bool(self.np_random.random() < 0.1), False, {}

for kind in SEEN:
    gym.register(f"{kind}-v0", Env, max_episode_steps=20, kwargs={"kind": kind})
for fails in ("made", "step", "shape"):
    kwargs = {"kind": "Point", "fails": fails}
    gym.register(f"Fails-{fails}-v0", Env, max_episode_steps=20, kwargs=kwargs)
gym.register(
    "Unseeded-v0", Env, max_episode_steps=20, kwargs={"kind": "Point", "fails": "seed"}
)
gym.register("Endless-v0", Env, kwargs={"kind": "Point"})
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_rl.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "numbers", "actions", "kind"),
    [
        ("Point", 2, 3, "categorical"),
        ("Choice", 4, 2, "gaussian"),
        ("Choices", 5, 2, "categorical"),
        ("Table", 6, 4, "gaussian"),
        ("Parts", 5, 2, "gaussian"),
        ("Pair", 4, 2, "gaussian"),
    ],
)
def test_a_rollout_in_every_space_and_back_to_where_it_stood(
    name: str, numbers: int, actions: int, kind: str
) -> None:
    name = f"their_rl:{name}-v0"
    envs = Environments(name, 0, [0, 1], 0.9)
    assert envs.interface[:3] == (numbers, actions, kind)
    torch.manual_seed(0)
    agent = Agent(numbers, actions, kind)
    rollout = collect(agent, envs, 40, 2, 0, 0)
    assert np.isfinite(rollout.raw).all()
    assert len(rollout.ended) > 2
    again = Environments(name, 0, [0, 1], 0.9)
    state = {key: value.copy() for key, value in envs.state().items()}
    again.restore(**state)
    assert np.array_equal(again.observations, envs.observations)


@pytest.mark.usefixtures("module")
def test_observations_and_actions_by_hand() -> None:
    parts = make("their_rl:Parts-v0").observation_space
    vector = to_vector(parts, {"where": np.float32([0.25, -1]), "what": 2})
    assert vector.tolist() == [0, 0, 1, 0.25, -1]  # Gymnasium sorts the names of a Dict
    start = make("their_rl:Point-v0").action_space
    assert to_action(start, np.float32([1])) == 6
    table = make("their_rl:Table-v0").action_space
    clipped = to_action(table, np.float32([-5, 0.5, 7, -3]))
    assert clipped.tolist() == [[-1, 0.5], [3, -2]]


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_rl:Image-v0", "observations are images"),
        ("their_rl:Words-v0", "observations cannot be made a vector"),
        ("their_rl:Bits-v0", "actions must be numbers or one choice"),
        ("their_rl:Endless-v0", "must have a limit; register it with max_episode_steps"),
        ("their_rl:Fails-made-v0", r"cannot be made \(no such level\)"),
        ("their_rl:Pont-v0", "no such environment, did you mean Point-v0"),
        ("nobodys_rl:Point-v0", r"cannot import nobodys_rl \(No module named"),
    ],
)
def test_what_is_not_supported_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--env {name}: .*{message}"):
        Environments(name, 0, [0], 0.9)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("step", r"failed in a step \(ZeroDivisionError: float division by zero\)"),
        ("shape", "gave an observation that is not of its space"),
    ],
)
def test_what_goes_wrong_in_a_step_names_the_environment(fails: str, message: str) -> None:
    envs = Environments(f"their_rl:Fails-{fails}-v0", 0, [0], 0.9)
    with pytest.raises(UserError, match=f"--env their_rl:Fails-{fails}-v0: {message}"):
        collect(Agent(2, 3, "categorical"), envs, 5, 1, 0, 0)


@pytest.mark.usefixtures("module")
def test_an_environment_whose_chance_is_its_own_is_found_out() -> None:
    name = "their_rl:Unseeded-v0"
    envs = Environments(name, 0, [3], 0.9)
    collect(Agent(2, 3, "categorical"), envs, 7, 4, 0, 0)
    state = {key: value.copy() for key, value in envs.state().items()}
    with pytest.raises(UserError, match="environment 3 of their_rl:Unseeded-v0 went another way"):
        Environments(name, 0, [3], 0.9).restore(**state)


def test_frozen_lake_is_a_choice_of_sixteen() -> None:
    assert interface(gym.make("FrozenLake-v1"), "FrozenLake-v1")[:3] == (16, 4, "categorical")


def test_the_program_trains_in_it_and_evaluates(module: Path) -> None:
    def run(program: str, *argv: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", program, *map(str, argv)],
            env=os.environ | {"PYTHONPATH": str(module)},
            capture_output=True,
            text=True,
            check=False,
        )

    out = module / "run"
    argv = ["smoke", "--env", "their_rl:Parts-v0", "--steps", 256, "--out", out]
    result = run("trpo_ppo.train", *argv)
    assert result.returncode == 0, result.stderr
    result = run("trpo_ppo.evaluate", "--model", out, "--episodes", 2)
    assert result.returncode == 0, result.stderr
    assert "episodes of their_rl:Parts-v0" in result.stdout
    argv = ["smoke", "--env", "their_rl:Fails-step-v0", "--steps", 256, "--out", module / "bad"]
    result = run("trpo_ppo.train", *argv)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "--env their_rl:Fails-step-v0: failed in a step (ZeroDivisionError" in line
