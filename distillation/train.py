"""Train a teacher, a student alone and the same student distilled:
``python -m distillation.train [preset] [--temperature 20 ...]``."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillation import objective
from distillation.config import PRESETS, Config, Role
from distillation.data import jittered, padded, transfer_set
from distillation.evaluate import NAMES, evaluate
from distillation.model import Classifier
from distillation.report import print_run, unseen_errors, write_network, write_outputs
from distillation.teacher import load, named, soft_targets
from shared import cli
from shared.data.mnist import load_mnist
from shared.data.splits import Split, split
from shared.errors import Interrupted, UserError
from shared.processes.distributed import global_sum, own_rows, world_size
from shared.processes.launch import on_main, start
from shared.run.checkpoint import is_complete
from shared.run.folder import claim
from shared.run.run import Run, open_stage
from shared.training.optim import muon_and_adam, set_rates, warmup_cosine
from shared.training.seeding import NOISE, generator, permutation


def divergence(config: Config, teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """The chosen divergence of logits [batch, classes] at temperature T, in nats [batch]."""
    t = config.temperature
    match config.objective:
        case "forward":
            return objective.forward(teacher, student, t)
        case "reverse":
            return objective.reverse(teacher, student, t)
        case "js":
            return objective.js(teacher, student, t)
        case "skew":
            return objective.skew(teacher, student, t, config.skew)
        case "decoupled":
            target, others = objective.decoupled(teacher, student, labels, t)
            return target + config.nontarget * others


def distillation_loss(
    divergence: Tensor, cross_entropy: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """alpha T^2 D_T + (1 - alpha) cross-entropy, [batch]; Hinton et al. 2015, section 2.

    A divergence at temperature T has gradients that shrink as 1 / T^2 (section 2.1); the factor
    T^2 makes up for it.
    """
    return alpha * temperature**2 * divergence + (1 - alpha) * cross_entropy


def train_network(
    role: Role, config: Config, run: Run, data: Split, targets: Tensor | None
) -> Classifier:
    """One network, all epochs; targets [slots, n, classes] are the teacher's logits, if any."""
    accelerator, recipe = run.accelerator, config.recipe(role)
    device = accelerator.device
    torch.manual_seed(2 * config.seed + (role == "teacher"))  # both students start alike
    network = Classifier(recipe.layers, recipe.dropout, recipe.input_dropout)
    evaluated = Classifier(recipe.layers, recipe.dropout, recipe.input_dropout).to(device)
    optimizers = muon_and_adam(network, [], 0.0, recipe.lr)
    accelerator.free_memory()  # of the stages before
    model, *optimizers = accelerator.prepare(network, *optimizers)
    print_run(run, role, config, evaluated, len(data.images))
    run.attach(model, optimizers)

    images, n, size = padded(data.images), len(data.images), config.batch_size
    steps = -(-n // size) * recipe.epochs
    while run.epoch < recipe.epochs:
        order = permutation(n, config.seed, run.epoch).to(device)
        model.train()
        for rows in run.batches(order, size):
            rng = generator(device, config.seed, NOISE, run.step)
            x, shifted = jittered(images, rows, recipe.jitter, rng)
            set_rates(optimizers, warmup_cosine(run.step, config.warmup, steps))

            logits = model(own_rows(x), rng, len(rows)).float()
            labels = own_rows(data.labels[rows])
            loss = objective.cross_entropy(logits, labels)
            if targets is not None:
                slot = shifted if len(targets) > 1 else torch.zeros_like(shifted)
                soft = divergence(config, own_rows(targets[slot, rows]), logits, labels)
                loss = distillation_loss(
                    soft, loss, temperature=config.temperature, alpha=recipe.alpha
                )
            loss = global_sum(loss.sum()) / len(rows)
            wrong = global_sum((logits.argmax(-1) != labels).sum()) / len(rows)
            run.refuse_non_finite(loss=loss)
            accelerator.backward(loss * world_size())  # DDP averages over processes
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            run.refuse_non_finite(gradient_norm=norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.stepped(loss=loss, error=wrong)

        metrics = run.end_epoch()
        weights = run.weights()
        if weights and (run.epoch % config.evaluate_every == 0 or run.epoch == recipe.epochs):
            evaluated.load_state_dict(weights)
            metrics["unseen_errors"] = unseen_errors(evaluated, data)
        run.report_epoch(metrics, recipe.epochs, ".4g", f"{role}, epoch")
    weights = run.weights()
    if weights:
        evaluated.load_state_dict(weights)
    return evaluated


def refuse_stage(resume: Path) -> None:
    """Stages are resumed as a part of their run, which later stages need.

    Raises:
        UserError: ``--resume`` names the folder of a stage.
    """
    stage = next((p for p in (resume, resume.parent.parent) if p.name in NAMES[:-1]), None)
    if stage is not None and (stage.parent / "checkpoints").is_dir():
        raise UserError(
            f"--resume {resume}: this is a stage of a run; name the run, --resume {stage.parent}"
        )


def train(preset: str, config: Config) -> None:
    """The whole of training, from digits to the run folder's table."""
    accelerator = start(config)
    device = accelerator.device
    digits = load_mnist(Path(config.data), device)
    data = split(digits, config.validation, config.train_size, config.test_size)
    transfer = transfer_set(data, config.transfer)
    teacher, results = None, dict[str, Any]()
    if config.teacher:
        teacher, about = load(named(config.teacher), device)
        results["teacher"] = evaluate(teacher, None, data, about)
    refuse_stage(Path(config.resume))
    folder = on_main(accelerator, lambda: claim("distillation", preset, config))

    for role in config.roles():
        stage = folder if role == config.roles()[-1] else folder / role
        if stage != folder and is_complete(stage / "model"):
            network, about = load(stage, device)
            results[role] = about["metrics"]
        else:
            studied, targets = data if role == "teacher" else transfer, None
            if config.recipe(role).alpha > 0 and teacher is not None:
                targets = soft_targets(config, accelerator, teacher, studied, folder)
            run = open_stage("distillation", preset, config, accelerator, stage)
            try:
                network = train_network(role, config, run, studied, targets)
            except Interrupted as stop:
                raise Interrupted(stop.exit_code - 128, folder) from None
            run.save()
            write = partial(write_network, run, role, config, network, teacher, data)
            results[role] = on_main(accelerator, write)
        teacher = network if role == "teacher" else teacher
    if run.close():
        write_outputs(run, config, teacher, data, results)


def main() -> None:
    train(*cli.read_config(PRESETS, "python -m distillation.train"))


if __name__ == "__main__":
    cli.run(main, "distillation.train")
