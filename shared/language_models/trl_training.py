"""One of TRL's trainers in our run folder: what it is told, its training, resuming it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PrinterCallback

from shared.errors import Interrupted, UserError, full_disk_is_a_user_error
from shared.language_models.trl_folder import SCRATCH, InOurFolder, go_on
from shared.run import interrupt
from shared.run.run import Run


def arguments(run: Run) -> dict[str, Any]:
    """The arguments that have nothing to do with what is trained."""
    return {
        "output_dir": str(run.checkpoints / SCRATCH),
        "bf16": run.config.mixed_precision == "bf16",  # TRL's default is True
        "use_cpu": run.accelerator.device.type == "cpu",  # transformers has no bf16 there without
        "seed": run.config.seed,
        "logging_steps": 1,  # so that no mean reaches over a checkpoint
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # shared.language_models.trl_folder asks for checkpoints
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
