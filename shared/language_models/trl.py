"""The run folder of TRL's trainers: metrics, checkpoints, stops, and resuming exactly.

A trainer writes a checkpoint into a scratch folder; it becomes ``checkpoints/step-...`` with
checksums and a manifest in one rename. The trainer reads back safetensors, JSON, and tensors by
``torch.load(weights_only=True)``.
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
from transformers import PrinterCallback, TrainerCallback, TrainerState
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
        self.tokens = self.tokens_before = 0.0  # TRL counts from zero in every process

    def restore(self, progress: dict[str, Any]) -> None:
        """Go on from a checkpoint's progress.json."""
        self.tokens = self.tokens_before = progress["num_tokens"]
        self.run.step, self.run.records = progress["step"], progress["records"]
        self.run.seconds = progress["seconds"]

    @override
    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, **inputs: Any
    ) -> None:
        model: nn.Module = inputs["model"]
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        if not torch.stack(norms).isfinite().all():
            self.refuse("the gradient is", state.global_step)

    def refuse(self, what: str, step: int) -> None:
        """End the run before an update by NaN or infinity."""
        saved = checkpoint.newest_complete(self.run.checkpoints)
        raise UserError(
            f"{what} not finite at step {step}: not applied, "
            f"{f'the newest checkpoint is {saved}' if saved else 'nothing was saved yet'}; "
            f"a new run with a smaller --lr may help"
        )

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.run.step = state.global_step
        self.signum = any_process(interrupt.received(), args.device)
        if self.signum:
            control.should_training_stop = True
        ended = state.global_step == state.max_steps
        if self.signum or ended or state.global_step % self.every == 0:
            control.should_save = True

    @override
    def on_log(self, args: Any, state: TrainerState, control: Any, **inputs: Any) -> None:
        logs: dict[str, float] = inputs["logs"]
        if "train_runtime" in logs:  # the trainer's own summary of the whole
            return
        if not math.isfinite(logs["loss"]):
            self.refuse("the loss is", state.global_step)
        metrics = {name: value for name, value in logs.items() if name != "total_flos"}
        if "num_tokens" in metrics:
            before = 0 if state.num_input_tokens_seen else self.tokens_before  # RLOO counts itself
            self.tokens = metrics["num_tokens"] = metrics["num_tokens"] + before
        self.run.record(metrics)
        step, last = state.global_step, state.max_steps
        if step % max(1, last // 10) == 0:
            self.run.say(f"step {step}/{last}, {self.run.elapsed():.0f} s: {shown(metrics)}")

    @override
    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        written = self.run.checkpoints / SCRATCH / f"checkpoint-{state.global_step}"
        self.run.accelerator.wait_for_everyone()  # every process writes its own random state

        def seal(folder: Path) -> None:
            (written / "training_args.bin").unlink()  # a pickle that is never read
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
    """The most important metrics of a step, for a printed line."""
    names = ("loss", "accuracy", "rewards/accuracies", "rewards/margins", "reward", "kl")
    return ", ".join(f"{n.split('/')[-1]} {metrics[n]:.3f}" for n in names if n in metrics)


def go_on(run: Run, trainer: Any, callback: InOurFolder) -> None:
    """Train on from the checkpoint that the run is resumed from.

    Raises:
        UserError: no complete one, a damaged one, or one of another number of processes.
    """
    path = checkpoint.to_resume(run.folder, run.config.resume)
    with checkpoint.intact_one_named(path):
        checkpoint.verify_folder(path)
    progress: dict[str, Any] = json.loads((path / "progress.json").read_text())
    if progress["processes"] != world_size():
        raise UserError(
            f"--resume {run.config.resume}: ran on {progress['processes']} process(es), each with "
            f"random numbers of its own; here are {world_size()}"
        )
    callback.restore(progress)
    run.on_main(lambda: keep_metrics(run.folder, run.records))
    run.say(f"resumed from {path}")
    try:
        if progress["step"] < progress["last_step"]:
            trainer.train(resume_from_checkpoint=str(path))
        else:  # train() would take one more step before it looks
            trainer._load_from_checkpoint(str(path))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, it holds more than tensors and numbers") from error


def arguments(run: Run) -> dict[str, Any]:
    """Arguments of a trainer that do not depend on model and data."""
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

    A checkpoint is written every ``every`` optimiser steps and at the end. Returns True on the main
    process, which alone goes on to evaluate.

    Raises:
        Interrupted: SIGINT or SIGTERM reached any of the processes; a checkpoint is written.
        UserError: the gradient is not finite, the disk is full, or the checkpoint is unusable.
    """
    callback = InOurFolder(run, every)  # after the others, whose metrics it writes
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    with full_disk_is_a_user_error(run.checkpoints), third_party():
        if run.config.resume:
            go_on(run, trainer, callback)
        else:
            trainer.train()
    is_main = run.leave()
    if callback.signum:
        raise Interrupted(callback.signum, run.folder)
    return is_main


@contextmanager
def third_party() -> Iterator[None]:
    """Silence progress bars of datasets, and warnings about a name that TRL and PEFT still use."""
    from datasets import disable_progress_bars  # takes seconds to import

    disable_progress_bars()
    with warnings.catch_warnings():
        renamed = r"`\w*gradient_checkpointing\w*` is deprecated"
        warnings.filterwarnings("ignore", renamed, FutureWarning)
        yield
