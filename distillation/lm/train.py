"""Distil a language model:
``python -m distillation.lm.train [preset] [--objective reverse ...]``."""

import copy
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from distillation.lm import objective
from distillation.lm.config import PRESETS, Config
from distillation.lm.data import Blocks, read_blocks
from distillation.lm.model import hidden_matrices, load, start_student, trainable
from distillation.lm.objective import LazyLogits, TopK
from distillation.lm.report import print_run, unseen_metrics, write_outputs
from distillation.lm.teacher import prepare
from distillation.lm.trl import train_with_trl
from shared import cli
from shared.errors import UserError
from shared.language_models.causal import locate
from shared.processes.distributed import global_sum, world_size
from shared.processes.launch import need_whole_weights, on_main, start
from shared.run.run import Run
from shared.training.batches import micro_batches, stream
from shared.training.optim import muon_and_adam, set_rates, warmup_cosine


def loss_sum(
    config: Config, student: LazyLogits, teacher: LazyLogits | TopK | None, part: Blocks
) -> Tensor:
    """The chosen objective over the predictions of a micro-batch that count, summed, in nats.

    T^2 D_T(teacher, student) at temperature T: the factor keeps the size of the gradient
    (Hinton et al. 2015, section 2.1). Without a teacher, the cross-entropy with the text.
    """
    t, counts = config.temperature, part.counts
    precision = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    student = student.at(counts).to(precision)
    match teacher:
        case None:
            return objective.cross_entropy(student, part.tokens[:, 1:][counts])
        case TopK():
            return t**2 * objective.topk(teacher.at(counts), student, t)
        case LazyLogits():
            divergence = objective.full if config.logits == "full" else objective.chunked
            target = teacher.at(counts).to(precision)
            return t**2 * divergence(config.objective, target, student, t, config.skew)


def train(preset: str, config: Config) -> None:
    """The whole of training, from text to the run folder's summary."""
    accelerator = start(config)
    device = accelerator.device
    on_main(accelerator, lambda: locate(config.teacher, Path(config.data)))
    teacher, tokenizer = load("--teacher", config.teacher, Path(config.data))
    student = start_student(
        config.student, config.layers, teacher, tokenizer, Path(config.data)
    ).to(device)
    if config.logits == "topk" and config.topk > teacher.vocabulary:
        raise UserError(f"--topk {config.topk}: the vocabulary has {teacher.vocabulary} tokens")
    if config.optimizer == "muon":
        need_whole_weights(accelerator, "--optimizer muon: takes")
    if config.on_policy:
        need_whole_weights(accelerator, "--on-policy: samples from")
    orthogonal = hidden_matrices(student) if config.optimizer == "muon" else []
    trained = trainable(student, config.train_embeddings)
    optimizers = muon_and_adam(trained, orthogonal, config.muon_lr, config.lr)
    blocks, unseen = on_main(accelerator, lambda: read_blocks(config, tokenizer))
    run = Run("distill-lm", preset, config, accelerator)
    data = prepare(config, run, teacher.to(device), tokenizer, blocks, unseen)
    evaluated = copy.deepcopy(student)
    model, *optimizers = accelerator.prepare(student, *optimizers)
    print_run(run, config, student, data)
    run.attach(model, optimizers)

    steps = -(-config.epoch_blocks // config.batch_size) * config.epochs
    while run.epoch < config.epochs:
        first = run.epoch * config.epoch_blocks
        order = stream(len(data.blocks.tokens), config.seed, first, config.epoch_blocks)
        model.train()
        for rows in run.batches(order.to(device), config.batch_size):
            set_rates(optimizers, warmup_cosine(run.step, config.warmup, steps))
            sampled = data.sampled(run.step, student, rows)
            blocks = data.blocks.at(rows) if sampled is None else sampled
            count = blocks.count(f"step {run.step}")

            loss = torch.zeros((), device=device)
            parts = micro_batches(len(rows), config.micro_batch)
            for number, (own, idle) in enumerate(parts, 1):
                part = blocks.at(own).masked(idle)
                targets = data.targets(part, rows[own] if sampled is None else None)
                with nullcontext() if number == len(parts) else accelerator.no_sync(model):
                    predictions = LazyLogits(*model(part.tokens[:, :-1]))
                    total = loss_sum(config, predictions, targets, part)
                    accelerator.backward(total / count * world_size())  # DDP averages
                loss += total.detach() / count
            loss = global_sum(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            run.refuse_non_finite(loss=loss, gradient_norm=norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.stepped(loss=loss, tokens=torch.tensor(count))

        metrics = run.end_epoch()
        if weights := run.weights():
            evaluated.load_state_dict(weights)
            metrics |= unseen_metrics(evaluated, data)
        run.report_epoch(metrics, config.epochs, ".3f")

    weights = run.weights()
    if run.close():
        evaluated.load_state_dict(weights)
        write_outputs(run, config, evaluated, data)


def main() -> None:
    preset, config = cli.read_config(PRESETS, "python -m distillation.lm.train")
    (train if config.backend == "zoo" else train_with_trl)(preset, config)


if __name__ == "__main__":
    cli.run(main, "distillation.lm.train")
