"""KL-penalised PPO on a language model: ``python -m rlhf.ppo [preset] [--beta 0.1 ...]``."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.config import PRESETS, Config
from rlhf.objective import advantages, policy_terms, token_rewards, value_terms
from rlhf.policy import Policy, log_probs, logits_of
from rlhf.prompts import read_prompts
from rlhf.report import finish, introduce, summarise, tell
from rlhf.rollout import Completions, judge
from rlhf.state import State, make_policy, optimizer_of
from rlhf.task import Task
from shared import cli
from shared.errors import UserError
from shared.kl import AdaptiveKL, chunked_kl, kl_early_stop, log_ratio_estimator
from shared.language_models.causal import load_causal, locate
from shared.processes.distributed import global_sum, world_size
from shared.processes.launch import need_whole_weights, on_main, start
from shared.run.run import Run
from shared.training.advantages import standardise
from shared.training.batches import micro_batches, stream
from shared.training.optim import set_rates
from shared.training.seeding import NOISE, PERMUTATION, generator

SAME = {"no": 1e-6, "bf16": 1e-2}  # what rounding makes of KL(old || new) = 0


@dataclass(frozen=True)
class Batch:
    """A rollout as PPO reads it: [n, time] each, the reference's states [n, time, width]."""

    completions: Completions
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    reference_states: Tensor

    def at(self, rows: Tensor) -> "Batch":
        first, *rest = (getattr(self, field.name) for field in fields(self))
        return Batch(first.at(rows), *(x[rows] for x in rest))


def prepare(
    config: Config, completions: Completions, said: dict[str, Tensor], scores: Tensor, beta: float
) -> tuple[Batch, float]:
    """Advantages of every token, and the coefficient of the exact KL in the loss."""
    mask, kl_weight = completions.mask, beta
    rewards = token_rewards(
        scores, said["log_prob"], said["reference"], said["kl"], mask, beta, config.kl
    )
    advantage, target = advantages(rewards, said["value"], mask, config.gamma, config.lam)
    if config.whiten:
        flat = advantage[mask]
        scaled = torch.zeros_like(advantage)
        scaled[mask] = standardise(flat, len(flat) * world_size())  # each process has all rows
        # The loss is divided as a whole; advantages that are all equal become zeros.
        kl_weight /= flat.double().std(correction=0).item() or 1.0
        advantage = scaled
    return Batch(
        completions, said["log_prob"], said["value"], advantage, target, said["reference_states"]
    ), kl_weight


def loss_sums(
    config: Config, model: nn.Module, policy: Policy, part: Batch, mask: Tensor, kl_weight: float
) -> dict[str, Tensor]:
    """What is minimised and what is watched, each summed over the tokens of a micro-batch."""
    given = part.completions
    states, weight, value = model(given.tokens, given.attention, given.prompt)
    logits = logits_of(states[mask], weight, config.temperature)
    log_prob, old = log_probs(logits, given.answers[mask]), part.log_prob[mask]
    policy_loss, clipped = policy_terms(log_prob, old, part.advantage[mask], config.clip)
    value_loss = value_terms(
        value[mask].float(), part.value[mask], part.target[mask], config.value_clip
    )
    loss = policy_loss + value_loss  # of different parameters
    if config.kl == "rb":
        there = part.reference_states[mask]
        reference = logits_of(there, policy.reference_weight, config.temperature)
        loss = loss + kl_weight * chunked_kl(logits, reference)
    with torch.no_grad():
        drift = log_ratio_estimator(old, log_prob, "k3")  # KL(old || new)
    terms = {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "clip_fraction": clipped.float(),
        "kl_old_new": drift,
    }
    return {name: x.sum() for name, x in terms.items()}


def update(
    config: Config,
    accelerator: Accelerator,
    model: nn.Module,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    kl_weight: float,
    number: int,
) -> dict[str, float]:
    """Passes of minibatch steps over rollout ``number``: Schulman et al. 2017, Algorithm 1."""
    told, steps = dict[str, float](), 0
    for epoch in range(config.epochs):
        rng = generator("cpu", config.seed, PERMUTATION, number, epoch)
        order = torch.randperm(config.batch_size, generator=rng)
        drift = 0.0
        for rows in order.to(batch.log_prob.device).chunk(config.minibatches):
            count = batch.completions.mask[rows].sum()  # tokens, over all processes and parts
            parts = micro_batches(len(rows), config.micro_batch)
            sums = dict[str, Tensor]()
            for nth, (own, idle) in enumerate(parts, 1):
                part = batch.at(rows[own])
                mask = part.completions.mask & (not idle)
                with nullcontext() if nth == len(parts) else accelerator.no_sync(model):
                    with accelerator.autocast():
                        found = loss_sums(config, model, policy, part, mask, kl_weight)
                    accelerator.backward(found["loss"] / count * world_size())  # DDP averages
                sums = {name: sums.get(name, 0) + x.detach() for name, x in found.items()}
            means = {name: (global_sum(x) / count).item() for name, x in sums.items()}
            if not steps and means["kl_old_new"] > SAME[config.mixed_precision]:
                raise RuntimeError(
                    f"KL(old || new) is {means['kl_old_new']:.2g} before the first "
                    f"step: the ratios are not 1"
                )
            for whose, group in zip(("policy", "value"), optimizer.param_groups, strict=True):
                norm = accelerator.clip_grad_norm_(group["params"], config.max_gradient).item()
                means[f"{whose}_gradient_norm"] = norm
                if not norm < float("inf"):
                    raise UserError(
                        f"gradient norm {norm} of the {whose}: not applied; --resume "
                        f"goes on from the newest checkpoint, with a smaller --lr a "
                        f"new run may do"
                    )
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            drift += means["kl_old_new"] / config.minibatches
            told = {name: told.get(name, 0.0) + x for name, x in means.items()}
        if config.early_stop and kl_early_stop(drift, config.early_stop, factor=1.0):
            break
    return {name: x / steps for name, x in told.items()}


def train(preset: str, config: Config) -> None:
    """The whole of training, from prompts to the run folder's summary."""
    accelerator = start(config)
    need_whole_weights(accelerator, "rlhf.ppo: samples from")
    device = accelerator.device
    if config.batch_size < world_size():
        raise UserError(
            f"--batch-size {config.batch_size}: is less than a completion for each of "
            f"the {world_size()} processes"
        )
    on_main(accelerator, lambda: locate(config.model, Path(config.data)))
    model, tokenizer = load_causal("--model", config.model, Path(config.data))
    policy = make_policy(config, model).to(device)
    task = Task(config, tokenizer, model.config, config.reward, config.temperature, device)
    prompts = read_prompts(
        "--prompts", config.prompts, tokenizer, config.max_prompt, held_out=False
    )
    state = State(policy, task.scale, config.beta)
    optimizer = optimizer_of(policy, config.lr, config.value_lr)
    run = Run("rlhf-ppo", preset, config, accelerator)
    wrapped, optimizer = accelerator.prepare(policy, optimizer)
    introduce(run, config, policy, prompts)
    run.attach(state, [optimizer])
    if not config.resume:
        task.fit_scale(policy, prompts)

    while run.epoch < config.iterations:
        if not run.steps_in_epoch:  # else it was stopped between an update and its record
            set_rates([optimizer], 1 - run.step / config.iterations)
            size = config.batch_size
            rows = stream(len(prompts.tokens), config.seed, run.step * size, size)
            asked = prompts.at(rows.tolist())
            rng = generator("cpu", config.seed, NOISE, run.step)
            uniforms = torch.rand(size, config.completion, generator=rng)
            with accelerator.autocast(), torch.no_grad():
                completions = task.complete(policy.lm, asked, uniforms.to(device))
                said = judge(policy, completions, config.temperature, config.micro_batch)
                scores, told = task.score(config, asked, completions)
            beta = state.beta.item()
            batch, kl_weight = prepare(config, completions, said, scores, beta)
            told |= update(
                config, accelerator, wrapped, policy, optimizer, batch, kl_weight, run.step
            )
            told |= summarise(said, completions.mask, scores, completions.ended, beta, batch.target)
            if config.kl_target:  # Ziegler et al. 2019, section 2.2
                penalty = AdaptiveKL(beta, config.kl_target, config.kl_horizon)
                state.beta.fill_(penalty.update(told["objective/kl"], size))
            run.stepped(**{name: torch.as_tensor(value) for name, value in told.items()})
        metrics = run.end_epoch()
        tell(run, config, metrics)
        if run.epoch % config.checkpoint_every == 0:
            run.save()
        if config.max_kl and metrics["objective/kl"] > config.max_kl:
            run.say(f"KL(policy || reference) is above --max-kl {config.max_kl:g}: ended here")
            break

    policy = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # evaluated in float32
    if run.close():
        finish(run, config, policy, task, tokenizer)


def main() -> None:
    preset, config = cli.read_config(PRESETS, "python -m rlhf.ppo")
    train(preset, config)


if __name__ == "__main__":
    cli.run(main, "rlhf.ppo")
