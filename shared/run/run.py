"""A run and its folder: configuration, environment, metrics, checkpoints, model, pictures.

runs/NAME-PRESET/
  config.json  env.json  metrics.jsonl  summary.json
  checkpoints/step-00007680/   weights, optimisers, progress, manifest
  model/                       config.json, model.safetensors, README.md (the card), manifest
  pictures/*.png
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer
from tqdm import tqdm

from shared.config import RunConfig
from shared.errors import Interrupted, UserError
from shared.processes.distributed import any_process
from shared.processes.launch import on_main
from shared.run import checkpoint, folder, interrupt

T = TypeVar("T")
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Run:
    """Steps, metrics and checkpoints of one training; every process calls every method."""

    def __init__(self, app: str, preset: str, config: RunConfig, accelerator: Accelerator) -> None:
        self.preset, self.config, self.accelerator = preset, config, accelerator
        self.step = 0  # optimiser steps taken
        self.epoch = 0  # epochs ended
        self.steps_in_epoch = 0
        self.sums: dict[str, float] = {}  # of the metrics of this epoch's steps
        self.records = 0  # lines of metrics.jsonl
        self.seconds = 0.0  # spent before this process started
        self._started = time.perf_counter()
        self._deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.folder = self.on_main(lambda: folder.claim(app, preset, config))
        self.checkpoints = self.folder / "checkpoints"
        interrupt.install()
        if config.trackers:
            accelerator.project_configuration.logging_dir = str(self.folder)
            flat = {key: str(value) for key, value in asdict(config).items()}
            accelerator.init_trackers("kl-zoo", flat)

    def say(self, text: str) -> None:
        """Print a line once, above the progress bar if there is one."""
        if self.accelerator.is_main_process:
            tqdm.write(text)

    def on_main(self, action: Callable[[], T]) -> T:
        """``shared.processes.launch.on_main`` of this run's processes."""
        return on_main(self.accelerator, action)

    def record(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl and hand its numbers to the trackers."""
        line = {"step": self.step, "seconds": round(self.elapsed(), 2)} | metrics
        self.on_main(lambda: folder.append_metrics(self.folder, line))
        self.records += 1
        if self.config.trackers:
            self.accelerator.log(metrics, step=self.step)

    def elapsed(self) -> float:
        """Seconds of this run on the wall, over all the parts it was resumed in."""
        return self.seconds + time.perf_counter() - self._started

    def batches(self, order: Tensor, size: int) -> Iterator[Tensor]:
        """The batches of this epoch that are still to do; a progress bar on a terminal."""
        parts = order.split(size)
        yield from tqdm(
            parts[self.steps_in_epoch :],
            initial=self.steps_in_epoch,
            total=len(parts),
            leave=False,
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
        )

    def refuse_non_finite(self, **values: Tensor | float) -> None:
        """Before the optimiser step: save the state and end the run rather than update with NaN.

        The values (loss, gradient norm) are already reduced over processes: all decide alike.

        Raises:
            UserError: one of them is NaN or infinite.
        """
        numbers = {n: v.item() if isinstance(v, Tensor) else v for n, v in values.items()}
        bad = {name: number for name, number in numbers.items() if not math.isfinite(number)}
        if not bad:
            return
        with torch.no_grad():  # what this step's forward pass has done to running statistics
            for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        # Before the first step there is nothing to lose, and the optimisers have no state yet.
        saved = f"the state before it is in {self.save()}" if self.step else "nothing was trained"
        shown = ", ".join(f"{name.replace('_', ' ')} {x:g}" for name, x in bad.items())
        raise UserError(
            f"{shown} at step {self.step}: not applied, {saved}; "
            f"a new run with a smaller --lr may help"
        )

    def stepped(self, **metrics: Tensor) -> None:
        """After the optimiser step: count it, add its metrics up, and stop on a signal.

        Raises:
            Interrupted: SIGINT or SIGTERM reached any of the processes; a checkpoint is written.
        """
        self.step += 1
        self.steps_in_epoch += 1
        self._buffers = [buffer.clone() for buffer in self.model.buffers()]
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()
        if signum := any_process(interrupt.received(), self.accelerator.device):
            self.save()
            self.accelerator.end_training()
            raise Interrupted(signum, self.folder)

    def end_epoch(self) -> dict[str, float]:
        """Means of the epoch's metrics; the next epoch starts at its first batch."""
        means = {name: total / self.steps_in_epoch for name, total in self.sums.items()}
        self.epoch, self.sums, self.steps_in_epoch = self.epoch + 1, {}, 0
        return means

    def report_epoch(
        self, metrics: dict[str, Any], epochs: int, form: str, name: str = "epoch"
    ) -> None:
        """Record and print the metrics of an epoch, and save every ``checkpoint_every`` epochs.

        Args:
            epochs: number of epochs of the training.
            form: format of a printed number, such as ``.2f``.
        """
        self.record(metrics)
        numbers = ", ".join(f"{key} {value:{form}}" for key, value in metrics.items())
        self.say(f"{name} {self.epoch}/{epochs}, {self.elapsed():.0f} s: {numbers}")
        if self.epoch % self.config.checkpoint_every == 0:
            self.save()

    def weights(self) -> dict[str, Any]:
        """The whole model's weights on the main process, also when processes hold a part each."""
        if self._deepspeed:
            return dict(self.accelerator.get_state_dict(self.model) or {})
        return get_model_state_dict(self.model, options=WHOLE)

    def close(self) -> bool:
        """Write the last checkpoint, then :meth:`leave`."""
        self.save()
        return self.leave()

    def leave(self) -> bool:
        """End the processes' work together; True on the main one, which goes on to evaluate."""
        is_main: bool = self.accelerator.is_main_process
        self.accelerator.end_training()
        interrupt.uninstall()
        return is_main

    def attach(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Take the model and optimisers into checkpoints; restore them when the run is resumed.

        Raises:
            UserError: no complete checkpoint, a damaged one, or one of another architecture.
        """
        self.model, self.optimizers = model, [getattr(o, "optimizer", o) for o in optimizers]
        if self.config.resume:
            self._restore()
        self._buffers = [buffer.clone() for buffer in model.buffers()]  # of the last step

    def _restore(self) -> None:
        if self._deepspeed:
            raise UserError("--resume: not under DeepSpeed; LAUNCH=fsdp or ddp resumes exactly")
        path = checkpoint.to_resume(self.folder, self.config.resume)
        with checkpoint.intact_one_named(path):
            weights, state, progress = checkpoint.load_training_state(path)
        checkpoint.check_architecture(self.accelerator.unwrap_model(self.model), weights, path)
        set_state_dict(
            self.model,
            self.optimizers,
            model_state_dict=weights,
            optim_state_dict=state,
            options=StateDictOptions(full_state_dict=True),
        )
        self.step, self.epoch = progress["step"], progress["epoch"]
        self.steps_in_epoch, self.sums = progress["steps_in_epoch"], progress["sums"]
        self.seconds, self.records = progress["seconds"], progress["records"]
        self.on_main(lambda: folder.keep_metrics(self.folder, self.records))
        self.say(f"resumed from {path}")

    def save(self) -> Path:
        """Write a checkpoint of this step, as a whole or not at all; returns its folder.

        Under DeepSpeed it lacks the optimiser's state, which DeepSpeed stores as pickles only.
        """
        path = self.checkpoints / f"step-{self.step:08d}"
        if self._deepspeed:
            weights, state = self.weights(), dict[str, Any]()
        else:
            weights, state = get_state_dict(self.model, self.optimizers, options=WHOLE)
        progress = {
            "step": self.step,
            "epoch": self.epoch,
            "steps_in_epoch": self.steps_in_epoch,
            "records": self.records,
            "sums": self.sums,
            "seconds": round(self.elapsed(), 3),
        }

        def write() -> None:
            if not checkpoint.is_intact(path):
                checkpoint.save_training_state(path, weights, state, progress)
            checkpoint.prune(self.checkpoints, self.config.keep)

        self.on_main(write)
        return path


def open_stage(
    app: str, preset: str, config: RunConfig, accelerator: Accelerator, path: Path
) -> Run:
    """One of several trainings of a run, in a folder of its own: a new one, or the one begun there.

    ``config.resume`` may name one of its checkpoints; otherwise it goes on from the newest.
    """
    started = (path / "checkpoints").is_dir()
    has_checkpoint = checkpoint.newest_complete(path / "checkpoints") is not None
    named = Path(config.resume)
    resume = str(named if named.parent == path / "checkpoints" else path) if started else ""
    if not started:
        on_main(accelerator, lambda: shutil.rmtree(path, ignore_errors=True))  # of an earlier try
    config = replace(config, out="" if started else str(path), resume=resume)
    run = Run(app, preset, config, accelerator)
    if not has_checkpoint:  # nothing to restore; metrics of steps that are repeated go
        on_main(accelerator, lambda: folder.keep_metrics(path, 0))
        run.config = replace(config, resume="")
    return run
