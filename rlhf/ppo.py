"""KL-penalised PPO on a language model: ``python -m rlhf.ppo [preset] [--beta 0.1 ...]``."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.config import PRESETS, Config
from rlhf.objective import advantages, policy_terms, token_rewards, value_terms
from rlhf.policies import load_model, make_policy
from rlhf.policy import Policy, log_probs, logits_of, optimizer_of
from rlhf.prompts import prompts_of
from rlhf.report import log_rollout, print_run, rollout_metrics, write_outputs
from rlhf.rewards import Standardiser
from rlhf.rewards.environment import Environment
from rlhf.rollout import Completions, TokenScores, score_tokens, uniforms
from shared import cli
from shared.errors import UserError
from shared.kl import AdaptiveKL, chunked_kl, kl_early_stop, log_ratio_estimator
from shared.processes.distributed import global_sum, world_size
from shared.processes.launch import need_whole_weights, start
from shared.run.run import Run
from shared.training.advantages import standardise
from shared.training.batches import micro_batches, stream
from shared.training.optim import set_rates
from shared.training.seeding import NOISE, PERMUTATION, generator

SAME = {"no": 1e-6, "bf16": 1e-2}  # what rounding makes of KL(old || new) = 0


class State(nn.Module):
    """The state of a checkpoint: trained parameters, coefficient, the rewards' moments."""

    beta: Tensor

    def __init__(self, policy: Policy, scale: Standardiser, beta: float) -> None:
        super().__init__()
        self.trained = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in policy.named_parameters() if p.requires_grad}
        )
        self.scale = scale
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))


class Batch(NamedTuple):
    """A rollout as the update reads it: [n, time] each, reference_states [n, time, width]."""

    completions: Completions
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    reference_states: Tensor

    def at(self, rows: Tensor) -> "Batch":
        completions, *tensors = self
        return Batch(completions.at(rows), *(x[rows] for x in tensors))


class LossTerms(NamedTuple):
    """The loss, its parts and what is logged beside it, each summed over tokens."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    clip_fraction: Tensor
    kl_old_new: Tensor


def prepare(
    config: Config, completions: Completions, tokens: TokenScores, scores: Tensor, beta: float
) -> tuple[Batch, float]:
    """Advantages of every token, and the coefficient of the exact KL in the loss."""
    mask, kl_weight = completions.mask, beta
    rewards = token_rewards(
        scores, tokens.log_prob, tokens.reference, tokens.kl, mask, beta, config.kl
    )
    advantage, target = advantages(rewards, tokens.value, mask, config.gamma, config.lam)
    if config.whiten:
        flat = advantage[mask]
        scaled = torch.zeros_like(advantage)
        scaled[mask] = standardise(flat, len(flat) * world_size())  # each process has all rows
        # The loss is divided as a whole; advantages that are all equal become zeros.
        kl_weight /= flat.double().std(correction=0).item() or 1.0
        advantage = scaled
    batch = Batch(
        completions, tokens.log_prob, tokens.value, advantage, target, tokens.reference_states
    )
    return batch, kl_weight


def loss_terms(
    config: Config, model: nn.Module, policy: Policy, part: Batch, mask: Tensor, kl_weight: float
) -> LossTerms:
    """The loss of the tokens of a micro-batch at which ``mask`` [n, time] is True."""
    completions = part.completions
    states, head, value = model(completions.tokens, completions.attention, completions.prompt)
    logits = logits_of(states[mask], head, config.temperature)
    log_prob, old = log_probs(logits, completions.sampled[mask]), part.log_prob[mask]
    policy_loss, clipped = policy_terms(log_prob, old, part.advantage[mask], config.clip)
    value_loss = value_terms(
        value[mask].float(), part.value[mask], part.target[mask], config.value_clip
    )
    loss = policy_loss + value_loss  # of different parameters
    if config.kl == "rb":
        reference_states = part.reference_states[mask]
        reference = logits_of(reference_states, policy.reference_head, config.temperature)
        loss = loss + kl_weight * chunked_kl(logits, reference)
    with torch.no_grad():
        kl_old_new = log_ratio_estimator(old, log_prob, "k3")
    terms = (loss, policy_loss, value_loss, clipped.float(), kl_old_new)
    return LossTerms(*(term.sum() for term in terms))


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
    """Minibatch steps over rollout ``number`` (Schulman et al. 2017, Algorithm 1); their metrics.

    Raises:
        RuntimeError: the policy differs from the one that sampled before the first step.
        UserError: a gradient is not finite.
    """
    sums, steps = dict[str, float](), 0
    for epoch in range(config.epochs):
        rng = generator("cpu", config.seed, PERMUTATION, number, epoch)
        order = torch.randperm(config.batch_size, generator=rng)
        drift = 0.0
        for rows in order.to(batch.log_prob.device).chunk(config.minibatches):
            count = batch.completions.mask[rows].sum()  # tokens, over all processes and parts
            parts = micro_batches(len(rows), config.micro_batch)
            totals = LossTerms(*torch.zeros(len(LossTerms._fields)))
            for nth, (own, idle) in enumerate(parts, 1):
                part = batch.at(rows[own])
                mask = part.completions.mask & (not idle)
                with nullcontext() if nth == len(parts) else accelerator.no_sync(model):
                    with accelerator.autocast():
                        terms = loss_terms(config, model, policy, part, mask, kl_weight)
                    accelerator.backward(terms.loss / count * world_size())  # DDP averages
                totals = LossTerms(*(a + b.detach() for a, b in zip(totals, terms, strict=True)))
            metrics = {n: (global_sum(x) / count).item() for n, x in totals._asdict().items()}
            if not steps and metrics["kl_old_new"] > SAME[config.mixed_precision]:
                raise RuntimeError(
                    f"KL(old || new) is {metrics['kl_old_new']:.2g} before the first step: the "
                    f"ratios are not 1"
                )
            for name, group in zip(("policy", "value"), optimizer.param_groups, strict=True):
                norm = accelerator.clip_grad_norm_(group["params"], config.max_gradient).item()
                metrics[f"{name}_gradient_norm"] = norm
                if not norm < float("inf"):
                    raise UserError(
                        f"gradient norm {norm} of the {name}: not applied; --resume continues "
                        f"from the newest checkpoint, and a new run with a smaller --lr may help"
                    )
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            drift += metrics["kl_old_new"] / config.minibatches
            sums = {name: sums.get(name, 0.0) + x for name, x in metrics.items()}
        if config.early_stop and kl_early_stop(drift, config.early_stop, factor=1.0):
            break
    return {name: x / steps for name, x in sums.items()}


def train(preset: str, config: Config) -> None:
    """Train from prompts to the run folder's summary."""
    accelerator = start(config)
    need_whole_weights(accelerator, "rlhf.ppo: samples from")
    device, size = accelerator.device, config.batch_size
    if size < world_size():
        raise UserError(
            f"--batch-size {size}: is less than a completion for each of the {world_size()} "
            f"processes"
        )
    model, tokenizer = load_model(config, accelerator)
    policy = make_policy(config, model).to(device)
    environment = Environment(
        config, tokenizer, model.config, config.reward, config.temperature, device
    )
    prompts = prompts_of(config, tokenizer, held_out=False)
    state = State(policy, environment.scale, config.beta)
    optimizer = optimizer_of(policy, config.lr, config.value_lr)
    run = Run("rlhf-ppo", preset, config, accelerator)
    wrapped, optimizer = accelerator.prepare(policy, optimizer)
    print_run(run, config, policy, prompts)
    run.attach(state, [optimizer])
    if not config.resume:
        environment.fit_scale(policy, prompts)

    while run.epoch < config.iterations:
        if not run.steps_in_epoch:  # else it was stopped between an update and its record
            set_rates([optimizer], 1 - run.step / config.iterations)
            rows = stream(len(prompts.tokens), config.seed, run.step * size, size)
            chosen = prompts.at(rows.tolist())
            numbers = uniforms(size, config.completion, config.seed, NOISE, run.step)
            with accelerator.autocast(), torch.no_grad():
                completions = environment.complete(policy.lm, chosen, numbers)
                tokens = score_tokens(policy, completions, config.temperature, config.micro_batch)
                scores, metrics = environment.score(config, chosen, completions)
            beta = state.beta.item()
            batch, kl_weight = prepare(config, completions, tokens, scores, beta)
            metrics |= update(
                config, accelerator, wrapped, policy, optimizer, batch, kl_weight, run.step
            )
            metrics |= rollout_metrics(tokens, completions, scores, batch.target, beta)
            if config.kl_target:  # Ziegler et al. 2019, section 2.2
                penalty = AdaptiveKL(beta, config.kl_target, config.kl_horizon)
                state.beta.fill_(penalty.update(metrics["objective/kl"], size))
            run.stepped(**{name: torch.as_tensor(value) for name, value in metrics.items()})
        metrics = run.end_epoch()
        log_rollout(run, config, metrics)
        if run.epoch % config.checkpoint_every == 0:
            run.save()
        if config.max_kl and metrics["objective/kl"] > config.max_kl:
            run.say(f"KL(policy || reference) is above --max-kl {config.max_kl:g}: ended here")
            break

    policy = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # evaluated in float32
    if run.close():
        write_outputs(run, config, policy, environment)


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m rlhf.ppo"))


if __name__ == "__main__":
    cli.run(main, "rlhf.ppo")
