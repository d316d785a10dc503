"""Start of every training program: processes, device, precision, seed."""

import ctypes
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, broadcast_object_list, set_seed
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from shared.config import RunConfig
from shared.errors import UserError, first_line

T = TypeVar("T")
REQUESTED = "KL_ZOO_PROCESSES"  # variable with the number that the launcher was to start
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether parameters or optimiser states are spread over processes (FSDP, DeepSpeed)."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def need_whole_weights(accelerator: Accelerator, what: str) -> None:
    """Raise UserError where FSDP or DeepSpeed spread the weights that ``what`` needs whole."""
    if is_sharded(accelerator):
        raise UserError(f"{what} whole weights, which FSDP and DeepSpeed spread over processes")


def keep_freed_memory() -> None:
    """Make glibc's malloc keep large freed blocks for the next ones.

    By default they go back to the kernel, which then zeroes the activations of every step page by
    page: a sixth of the training time of a small convolutional network on two cores.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def start(config: RunConfig, cpu: bool = False) -> Accelerator:
    """An Accelerator for this process, one or one of several, with its generators seeded.

    The seed is the same on all, so that they build the same initial model; noise of the steps comes
    from ``shared.training.seeding``. Denormals are flushed to zero: the optimisers' averages for
    pixels that are always black decay into them and cost a CPU ten times the time.

    Args:
        cpu: stay on CPUs, with gloo between processes, whatever else the machine has.

    Raises:
        UserError: a tracker's package is missing, the name of the Hub repository is invalid, or
            another number of processes was started than requested.
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
        project_config=ProjectConfiguration(logging_dir=""),  # shared.run.run sets it
    )
    requested, started = os.environ.get(REQUESTED, ""), accelerator.num_processes
    if requested not in ("", str(started)):
        raise UserError(
            f"{requested} processes were requested, {started} started; on CPUs torchrun "
            f"starts them, as in make NPROC={requested} LAUNCH=cpu"
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
    """The result of ``action`` on every process; only the main process calls it.

    An error for people is raised on all of them, so that none waits for one that has ended.
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
