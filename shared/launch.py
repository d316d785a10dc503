"""Start of every training program: processes, device, precision, seed."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from shared.config import RunConfig


def start(config: RunConfig) -> Accelerator:
    """An Accelerator for however this process was launched, seeded alike on every process.

    Alike, so that all build the same initial model; noise of the steps comes from
    :mod:`shared.seeding`. Denormals are flushed to zero: the optimisers' averages for pixels that
    are always black decay into them and cost a CPU ten times the time.
    """
    torch.set_flush_denormal(True)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=list(config.trackers) or None
    )
    set_seed(config.seed)
    return accelerator
