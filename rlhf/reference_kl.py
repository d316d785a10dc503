"""How far a policy has moved while one of TRL's trainers trains it: KL, gold reward, lengths.

TRL's DPOTrainer reports no KL at all, and what its RLOOTrainer reports is per token and on the
training prompts. The frontier of reward against KL needs both on the policy's own completions.
"""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from rlhf.evaluate import on_policy
from rlhf.policy import Policy
from rlhf.prompts import Prompts
from rlhf.task import Task
from shared.run.run import Run


class ReferenceKL(TrainerCallback):
    """Measures a policy on its own completions of fixed prompts, from fixed random numbers.

    Writes ``objective/kl``, KL(policy || reference) in nats per sequence, exact at every sampled
    prefix (Amini et al. 2025); ``objective/kl_k1``; ``rewards/gold/mean`` and the proxies';
    ``completions/...``. Before the first step, every ``every`` steps, and after the last.
    """

    def __init__(self, run: Run, policy: Policy, task: Task, prompts: Prompts, every: int) -> None:
        self.run, self.policy, self.task = run, policy, task
        self.prompts, self.every = prompts, every

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 0:
            self.measure()

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.run.step = state.global_step
            self.measure()

    def measure(self) -> None:
        """Sample, judge, and write a line of metrics.jsonl."""
        completions, kl, k1 = on_policy(self.policy, self.task, self.prompts)
        tokens = completions.mask.sum(1).double()
        names = [*self.task.names, *["gold"] * len(self.task.gold)]
        means = self.task.rewards_of(self.prompts, completions).mean(0).tolist()
        told = {
            "objective/kl": kl.double().mean().item(),
            "objective/kl_k1": k1.double().mean().item(),
            "objective/kl_per_token": (kl.sum() / tokens.sum()).item(),
            "completions/mean_length": tokens.mean().item(),
            "completions/eos_rate": completions.ended.double().mean().item(),
        } | {f"rewards/{name}/mean": mean for name, mean in zip(names, means, strict=True)}
        self.run.record(told)
        gold = f", gold reward {told['rewards/gold/mean']:.3f}" if self.task.gold else ""
        self.run.say(
            f"step {self.run.step}, {self.run.elapsed():.0f} s: KL(policy || reference) "
            f"{told['objective/kl']:.2f} nats{gold}"
        )
