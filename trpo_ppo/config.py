"""Options, presets and hyperparameters of each task; --clip, --beta or --delta bounds a step."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from shared.config import Count, CountOrZero, NonNegative, Positive, RunConfig

Algorithm = Literal["ppo-clip", "ppo-kl", "ppo-kl-adaptive", "trpo"]


@dataclass(frozen=True)
class Config(RunConfig):
    """Train a policy with TRPO or PPO; ``--env`` and ``--algo`` choose the rest."""

    env: str = "CartPole-v1"
    """Gymnasium environment, or MODULE:NAME of your own: any observations that are numbers or
    choices (images apart), actions that are numbers or one choice."""
    algo: Algorithm = "ppo-clip"
    """What holds the new policy near the old one. ppo-clip: --clip. ppo-kl: a penalty --beta
    KL(old || new). ppo-kl-adaptive: the penalty follows the target --delta. trpo: the constraint
    KL(old || new) <= --delta."""
    clip: Positive = 0.2
    """ppo-clip: range of the ratio pi_new / pi_old around 1 (Schulman et al. 2017: 0.1 to 0.3)."""
    beta: NonNegative = 1.0
    """ppo-kl: weight of the penalty, advantage per nat (Schulman et al. 2017: 0.3 to 10; 0: no
    penalty at all); ppo-kl-adaptive starts there (paper: 1)."""
    delta: Positive = 0.01
    """Nats per state. trpo: largest mean KL (Schulman et al. 2015: 0.01); ppo-kl-adaptive: target
    (Schulman et al. 2017: 0.003 to 0.03)."""

    steps: Count = 100_000
    """Environment steps over all processes, rounded up to whole rollouts."""
    num_envs: Count = 8
    """Environments over all processes together."""
    rollout: Count = 32
    """Steps of each environment between two updates."""
    gamma: NonNegative = 0.99
    """Discount per step."""
    lam: NonNegative = 0.95
    """Trace of the generalised advantage estimate (Schulman et al. 2016)."""
    normalise: bool = False
    """Shift and scale observations by their running moments, and scale rewards by the running
    standard deviation of the discounted return, as OpenAI baselines does."""

    epochs: Count = 20
    """Passes over a rollout; with trpo the critic's alone."""
    minibatch: Count = 256
    """Transitions per gradient step over all processes together."""
    lr: Positive = 1e-3
    """Learning rate of Adam; with trpo the critic's alone."""
    anneal: bool = True
    """Learning rate linearly to zero over the run; else constant."""
    value_coefficient: NonNegative = 0.5
    """PPO: weight of the value loss beside the policy's."""
    entropy: NonNegative = 0.0
    """PPO: weight of an entropy bonus, per nat."""
    max_gradient: Positive = 0.5
    """Largest gradient norm; longer gradients are scaled down to it."""
    early_stop: NonNegative = 0.0
    """PPO: leave the epochs of a rollout once KL(old || new) > 1.5 times this. 0: never."""

    cg_iterations: Count = 10
    """trpo: conjugate-gradient iterations (Schulman et al. 2015: 10)."""
    damping: NonNegative = 0.1
    """trpo: added to the Fisher matrix's diagonal (OpenAI baselines: 0.1)."""
    backtracks: CountOrZero = 10
    """trpo: how often a step is shortened, by 0.8 each time, before it is given up."""

    width: Count = 64
    """Units of a hidden layer (Schulman et al. 2017: 64)."""
    depth: Count = 2
    """Hidden layers, of the policy and of the value function (Schulman et al. 2017: 2)."""
    log_std: float = 0.0
    """Start of a Gaussian policy's log standard deviation, the same in every state."""

    checkpoint_every: Count = 20
    """Rollouts between checkpoints; one is also written on SIGTERM, Ctrl-C and at the end."""
    evaluation_episodes: Count = 20
    """Episodes of the final evaluation, deterministic and stochastic each."""

    def conflicts(self) -> list[str]:
        """Combinations that mean nothing, each with what to change."""
        problems = []
        batch = self.num_envs * self.rollout
        if self.algo != "trpo" and batch % self.minibatch:
            problems.append(
                f"--minibatch {self.minibatch}: must divide the {batch} transitions of "
                f"--num-envs {self.num_envs} times --rollout {self.rollout}"
            )
        for name in ("gamma", "lam"):
            if getattr(self, name) > 1:
                problems.append(f"--{name} {getattr(self, name)}: must be at most 1")
        if self.algo == "ppo-kl-adaptive" and self.beta == 0:
            problems.append("--beta 0.0: an adaptive penalty needs --beta > 0 to start from")
        if self.mixed_precision != "no":
            problems.append(
                f"--mixed-precision {self.mixed_precision}: these networks are too small"
            )
        return problems


# rl-baselines3-zoo, hyperparams/ppo.yml and trpo.yml, but for the numbers of steps, Pendulum's
# state-dependent exploration, and what a comment says.
# CartPole has the defaults above: the zoo's but for gamma and lam, there 0.98 and 0.8, with which
# the cart learns to roll off the track after some 300 steps, and for the scaled rewards, without
# which V lags behind returns of up to 100 and the penalised policies lose their way on some seeds.
_CARTPOLE: dict[str, Any] = {"normalise": True}
_TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": _CARTPOLE,
    "Acrobot-v1": {
        "steps": 500_000,
        "num_envs": 16,
        "rollout": 256,
        "gamma": 0.99,
        "lam": 0.94,
        "epochs": 4,
        "minibatch": 64,
        "lr": 3e-4,
        "normalise": True,
        "anneal": False,
    },
    "Pendulum-v1": {
        "steps": 200_000,
        "num_envs": 4,
        "rollout": 1024,
        "gamma": 0.9,
        "lam": 0.95,
        "epochs": 10,
        "minibatch": 64,
        "anneal": False,
    },
    "LunarLander-v3": {
        "steps": 1_000_000,
        "num_envs": 16,
        "rollout": 1024,
        "gamma": 0.999,
        "lam": 0.98,
        "epochs": 4,
        "minibatch": 64,
        "lr": 3e-4,
        "entropy": 0.01,
        "anneal": False,
    },
}
# Schulman et al. 2017, Table 3, with two environments of 1024 steps instead of one of 2048.
_MUJOCO: dict[str, Any] = {
    "steps": 1_000_000,
    "num_envs": 2,
    "rollout": 1024,
    "gamma": 0.99,
    "lam": 0.95,
    "epochs": 10,
    "minibatch": 64,
    "lr": 3e-4,
    "normalise": True,
}
_TRPO: dict[str, Any] = {"epochs": 20, "minibatch": 128, "lr": 1e-3, "anneal": False}
_TRPO_TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"num_envs": 2, "rollout": 512, "gamma": 0.99, "lam": 0.98, "damping": 1e-3},
    "Acrobot-v1": {"num_envs": 2, "rollout": 1024, "lam": 0.95, "steps": 100_000},
    "Pendulum-v1": {"num_envs": 2, "rollout": 1024, "epochs": 15},
    "LunarLander-v3": {
        "num_envs": 2,
        "rollout": 512,
        "gamma": 0.99,
        "epochs": 15,
        "damping": 1e-2,
        "steps": 500_000,
    },
    # The zoo's --delta is 0.01, HalfCheetah's 0.04, and its --damping 0.1, of KLs that sb3-contrib
    # divides by the number of action dimensions: here times that number, as KLs are. The zoo's
    # MuJoCo tasks take 25 iterations of the conjugate gradient, ours the paper's 10.
    "HalfCheetah-v5": {"delta": 0.24, "damping": 0.6},
    "Hopper-v5": {"delta": 0.03, "damping": 0.3},
    "Reacher-v5": {"delta": 0.02, "damping": 0.2},
    "Swimmer-v5": {"delta": 0.02, "damping": 0.2},
    "Walker2d-v5": {"delta": 0.06, "damping": 0.6},
}


def presets(env: str, algo: Algorithm) -> dict[str, Config]:
    """The presets with the hyperparameters of a task; one that is not listed gets MuJoCo's."""
    task = _TASKS.get(env, _MUJOCO)
    if algo == "trpo":
        task = task | _TRPO | _TRPO_TASKS.get(env, {})
    default = Config(env=env, algo=algo, **task)
    paper = replace(
        default,
        steps=1_000_000,
        num_envs=1,
        rollout=2048,
        gamma=0.99,
        lam=0.95,
        epochs=10,
        minibatch=64,
        lr=3e-4,
        anneal=False,
        entropy=0.0,
        normalise=True,
        delta=0.01,
        damping=0.1,
    )
    smoke = replace(
        default,
        steps=2048,
        num_envs=4,
        rollout=128,
        epochs=2,
        minibatch=64,
        evaluation_episodes=2,
        checkpoint_every=2,
    )
    return {"smoke": smoke, "default": default, "paper": paper}
