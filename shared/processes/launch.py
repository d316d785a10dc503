"""Start of every training program: processes, device, precision, seed."""

import ctypes
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    ProjectConfiguration,
    broadcast_object_list,
    set_seed,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from shared.config import RunConfig
from shared.errors import UserError, first_line

T = TypeVar("T")
ASKED = "KL_ZOO_PROCESSES"  # how many the Makefile asked the launcher for
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether parameters or optimiser states are spread over processes (FSDP, DeepSpeed)."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def need_whole_weights(accelerator: Accelerator, what: str) -> None:
    """UserError where FSDP or DeepSpeed spread the weights; ``what`` says who needs them whole."""
    if is_sharded(accelerator):
        raise UserError(f"{what} whole weights, which FSDP and DeepSpeed spread over processes")


def keep_freed_memory() -> None:
    """Have glibc's malloc keep large blocks that were freed for the next ones.

    It gives them back to the kernel, which then zeroes the activations of every step page by page:
    a sixth of the time of the convolutional teacher of distillation/ on two cores.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start(config: RunConfig, cpu: bool = False) -> Accelerator:
    """An Accelerator for however this process was launched, seeded alike on every process.

    Alike, so that all build the same initial model; noise of the steps comes from
    ``shared.training.seeding``. Denormals are flushed to zero: the optimisers' averages for pixels
    that are always black decay into them and cost a CPU ten times the time.

    Args:
        cpu: stay on CPUs, with gloo between processes, whatever else the machine has.

    Raises:
        UserError: a tracker's package is missing, the Hub repository's name is none, or not so many
            processes were started as were asked for.
    """
    if missing := [name for name in config.trackers if find_spec(name) is None]:
        raise UserError(
            f"--trackers {' '.join(missing)}: not installed; pip install {' '.join(missing)}"
        )
    if config.push_to_hub:
        check_repository(config.push_to_hub)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(logging_dir=""),  # the run's folder, once it is there
    )
    asked, started = os.environ.get(ASKED, ""), accelerator.num_processes
    if asked not in ("", str(started)):
        raise UserError(
            f"{asked} processes were asked for, {started} started; on CPUs torchrun "
            f"starts them, as in make NPROC={asked} LAUNCH=cpu"
        )
    if plugin := accelerator.state.deepspeed_plugin:
        # DeepSpeed insists on the value and only counts with it: batches are tensors here.
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    set_seed(config.seed)
    return accelerator


def check_repository(name: str) -> None:
    """Refuse a repository name that the Hub would refuse hours later.

    Raises:
        UserError: not of the form user/name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {name}: {first_line(error)}") from error


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Result of ``action``, called on the main process only, on every process.

    What it raises for people is raised by all of them: none waits for one that has ended.
    """
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except (UserError, OSError) as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
