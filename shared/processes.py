"""A program on several processes: ``python -m shared.processes N cpu|ddp|... PROGRAM [option]``.

On CPUs torchrun starts them, on GPUs Accelerate's launcher with the configuration of this name in
``shared/accelerate/``. Unlike theirs, the exit code is the program's, its error is not followed by
the launcher's traceback, and after Ctrl-C a step may take ten minutes to end in a checkpoint, not
half of one.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from shared import cli
from shared.errors import UserError
from shared.launch import ASKED

CONFIGURATIONS = Path(__file__).parent / "accelerate"
LAUNCHES = ("cpu", "ddp", "fsdp", "zero2", "zero3")


def launch(count: str, how: str, program: list[str]) -> None:
    """Start ``count`` processes of a module and wait for their end.

    Raises:
        UserError: count or launch are none.
        ChildFailedError: a process ended otherwise than with 0.
        SignalException: this process was interrupted, and has interrupted them.
    """
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"NPROC={count}: must be a whole number >= 1")
    if how not in LAUNCHES:
        raise UserError(f"LAUNCH={how}: is none of {', '.join(LAUNCHES)}")
    threads = max(1, (os.cpu_count() or 1) // int(count))
    for name, value in {"OMP_NUM_THREADS": threads, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": 600}.items():
        os.environ.setdefault(name, str(value))
    os.environ[ASKED] = count
    if how == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torchrun.main(["--standalone", "--nproc_per_node", count, "-m", *program])
    else:
        given = ["--config_file", str(CONFIGURATIONS / f"{how}.yaml"), "--num_processes", count]
        launch_command(launch_command_parser().parse_args([*given, "-m", *program]))


def main() -> None:
    if len(sys.argv) < 4:
        raise UserError(f"usage: python -m shared.processes N {'|'.join(LAUNCHES)} PROGRAM ...")
    count, how, *program = sys.argv[1:]
    logging.disable(logging.ERROR)  # of the launchers; the programs log in their own processes
    try:
        launch(count, how, program)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"{program[0]}: process {rank} was ended by {name}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    cli.run(main, "shared.processes")
