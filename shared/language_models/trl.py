"""The run folder of TRL's trainers: metrics, checkpoints, stops, and resuming exactly.

A trainer writes a checkpoint into a scratch folder; it becomes ``checkpoints/step-...`` with
checksums and a manifest in one rename. What the trainer reads back are safetensors, JSON, and
tensors by ``torch.load(weights_only=True)``.
"""

import json
import math
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from typing_extensions import override

from shared.errors import Interrupted, UserError, full_disk_is_a_user_error
from shared.processes.distributed import any_process, world_size
from shared.run import checkpoint, interrupt
from shared.run.folder import keep_metrics, write_json
from shared.run.run import Run

SCRATCH = ".tmp-trl"  # where a trainer writes; shared.run.checkpoint.prune removes it


class InOurFolder(TrainerCallback):
    """Metrics to metrics.jsonl, checkpoints with a manifest, stops on signals and on NaN."""

    def __init__(self, run: Run, every: int) -> None:
        self.run, self.every = run, every  # optimiser steps between checkpoints
        self.signum = 0
        self.tokens = self.tokens_before = 0.0  # TRL counts them from zero in every process

    def restore(self, progress: dict[str, Any]) -> None:
        """Go on from a checkpoint's progress.json."""
        self.tokens = self.tokens_before = progress["num_tokens"]
        self.run.step, self.run.records = progress["step"], progress["records"]
        self.run.seconds = progress["seconds"]

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        model: nn.Module = given["model"]
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        if not torch.stack(norms).isfinite().all():
            self.refuse("the gradient is", state.global_step)

    def refuse(self, what: str, step: int) -> None:
        """End the run before an update by a number that is none."""
        saved = checkpoint.newest_complete(self.run.checkpoints)
        raise UserError(
            f"{what} not finite at step {step}: not applied, "
            f"{f'the newest checkpoint is {saved}' if saved else 'nothing was saved yet'}; "
            f"a new run with a smaller --lr may help"
        )

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.run.step = state.global_step
        self.signum = any_process(interrupt.received(), args.device)
        if self.signum:
            control.should_training_stop = True
        ended = state.global_step == state.max_steps
        if self.signum or ended or state.global_step % self.every == 0:
            control.should_save = True

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        logs: dict[str, float] = given["logs"]
        if "train_runtime" in logs:  # the trainer's own summary of the whole
            return
        if not math.isfinite(logs["loss"]):
            self.refuse("the loss is", state.global_step)
        told = {name: value for name, value in logs.items() if name != "total_flos"}
        if "num_tokens" in told:
            before = 0 if state.num_input_tokens_seen else self.tokens_before  # RLOO counts itself
            self.tokens = told["num_tokens"] = told["num_tokens"] + before
        self.run.record(told)
        if state.global_step % max(1, state.max_steps // 10) == 0:
            self.run.say(
                f"step {state.global_step}/{state.max_steps}, {self.run.elapsed():.0f} s: "
                f"{shown(told)}"
            )

    @override
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        written = self.run.checkpoints / SCRATCH / f"checkpoint-{state.global_step}"
        self.run.accelerator.wait_for_everyone()  # every process writes its own random state

        def seal(folder: Path) -> None:
            (written / "training_args.bin").unlink()  # a pickle that nobody reads
            for file in written.iterdir():
                file.rename(folder / file.name)
            progress = {
                "step": state.global_step,
                "last_step": state.max_steps,
                "records": self.run.records,
                "seconds": round(self.run.elapsed(), 3),
                "num_tokens": self.tokens,
                "processes": world_size(),
            }
            write_json(folder / "progress.json", progress)

        def keep() -> None:
            path = self.run.checkpoints / f"step-{state.global_step:08d}"
            checkpoint.write_folder(path, seal)
            checkpoint.prune(self.run.checkpoints, self.run.config.keep)

        self.run.on_main(keep)


def shown(metrics: dict[str, float]) -> str:
    """The few numbers of a step that a person looks at."""
    names = ("loss", "accuracy", "rewards/accuracies", "rewards/margins", "reward", "kl")
    return ", ".join(f"{n.split('/')[-1]} {metrics[n]:.3f}" for n in names if n in metrics)


def go_on(run: Run, trainer: Any, ours: InOurFolder) -> None:
    """Train from the checkpoint that the run is resumed from."""
    path, progress = find_checkpoint(run)
    ours.restore(progress)
    run.on_main(lambda: keep_metrics(run.folder, run.records))
    run.say(f"resumed from {path}")
    try:
        if progress["step"] < progress["last_step"]:
            trainer.train(resume_from_checkpoint=str(path))
        else:  # train() would take one more step before it looks
            trainer._load_from_checkpoint(str(path))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, it holds more than tensors and numbers") from error


def find_checkpoint(run: Run) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that ``--resume`` names, or the run's newest complete one; its progress.

    Raises:
        UserError: no complete one, a damaged one, or one of another number of processes.
    """
    given = Path(run.config.resume)
    path = given if given != run.folder else checkpoint.newest_complete(run.checkpoints)
    if path is None:
        raise UserError(f"--resume {given}: holds no complete checkpoint yet, start it anew")
    try:
        checkpoint.verify_folder(path)
        progress: dict[str, Any] = json.loads((path / "progress.json").read_text())
    except UserError as error:
        if (other := checkpoint.newest_intact(path.parent, besides=path)) is None:
            raise
        raise UserError(f"{error}; {other} is intact, go on with --resume {other}") from error
    if progress["processes"] != world_size():
        raise UserError(
            f"--resume {given}: ran on {progress['processes']} process(es), each with random "
            f"numbers of its own; here are {world_size()}"
        )
    return path, progress


def arguments(run: Run) -> dict[str, Any]:
    """The arguments that have nothing to do with what is trained."""
    return {
        "output_dir": str(run.checkpoints / SCRATCH),
        "bf16": run.config.mixed_precision == "bf16",  # TRL's default is True
        "use_cpu": run.accelerator.device.type == "cpu",  # transformers has no bf16 there without
        "seed": run.config.seed,
        "logging_steps": 1,  # so that no mean reaches over a checkpoint
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # the callback asks for checkpoints
        "report_to": "none",  # shared.run.run has the trackers
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
    }


def train_with(trainer: Any, run: Run, every: int) -> bool:
    """Train to the end, from the checkpoint to resume from if there is one.

    A checkpoint every so many optimiser steps, and at the end. True on the main process: what is
    left (evaluation, pictures) is its alone.

    Raises:
        Interrupted: SIGINT or SIGTERM reached any of the processes; a checkpoint is written.
        UserError: the gradient is not finite, the disk is full, or the checkpoint is unusable.
    """
    ours = InOurFolder(run, every)  # after the other callbacks: it writes what they found
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ours)
    try:
        with full_disk_is_a_user_error(run.checkpoints), third_party():
            if run.config.resume:
                go_on(run, trainer, ours)
            else:
                trainer.train()
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        raise UserError(  # torch.save to a file hides what the operating system said
            f"{run.checkpoints}: cannot be written, the disk is full or over its quota; "
            f"what was saved before is intact"
        ) from error
    is_main: bool = run.accelerator.is_main_process
    run.accelerator.end_training()
    if ours.signum:
        raise Interrupted(ours.signum, run.folder)
    interrupt.uninstall()
    return is_main


@contextmanager
def third_party() -> Iterator[None]:
    """Around TRL's trainers: no warning that PEFT and TRL use a name that transformers renames."""
    from datasets import disable_progress_bars  # seconds to import, as TRL

    disable_progress_bars()
    with warnings.catch_warnings():
        renamed = r"`\w*gradient_checkpointing\w*` is deprecated"
        warnings.filterwarnings("ignore", renamed, FutureWarning)
        yield
