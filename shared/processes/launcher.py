"""Starts a program on several processes.

``python -m shared.processes.launcher N cpu|ddp|... PROGRAM [option]``

On CPUs torchrun starts them, on GPUs Accelerate's launcher with the configuration of this name in
``shared/processes/``; with NNODES in the environment, this machine's share of them. Unlike theirs,
the exit code is the program's, its error is not followed by the launcher's traceback, and after
Ctrl-C a step has ten minutes to end in a checkpoint, not half a minute.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from shared import cli
from shared.errors import UserError
from shared.processes.launch import REQUESTED

CONFIGURATIONS = Path(__file__).parent
LAUNCHES = ("cpu", "ddp", "fsdp", "zero2", "zero3")


@dataclass(frozen=True)
class Machines:
    """The number of machines, this one's rank, and the address of the first."""

    count: int
    rank: int
    address: str
    port: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Machines":
        """Read torchrun's variables NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT.

        Raises:
            UserError: one of them is missing or invalid.
        """
        count, rank = environment.get("NNODES", "1"), environment.get("NODE_RANK", "0")
        address = environment.get("MASTER_ADDR", "")
        if not count.isdecimal() or int(count) < 1:
            raise UserError(f"NNODES={count}: must be a whole number of machines >= 1")
        if not rank.isdecimal() or int(rank) >= int(count):
            raise UserError(f"NODE_RANK={rank}: must be one of 0 to {int(count) - 1}")
        if int(count) > 1 and not (address and "NODE_RANK" in environment):
            raise UserError(
                f"NNODES={count}: needs MASTER_ADDR, the name of the first machine, and "
                f"NODE_RANK, 0 on the first"
            )
        return cls(int(count), int(rank), address, environment.get("MASTER_PORT", "29500"))

    def options(self, names: str) -> list[str]:
        """Count, rank, address and port as a launcher's options of these names; none for one."""
        values = zip(names.split(), astuple(self), strict=True)
        return [f"--{name}={value}" for name, value in values] if self.count > 1 else []


def launch(count: str, kind: str, program: list[str]) -> None:
    """Start ``count`` processes of a module, this machine's share of them, and wait for their end.

    Raises:
        UserError: the number of processes, the launch or a machine is invalid.
        ChildFailedError: a process ended with another exit code than 0.
        SignalException: this process was interrupted, and has interrupted them.
    """
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"NPROC={count}: must be a whole number >= 1")
    if kind not in LAUNCHES:
        raise UserError(f"LAUNCH={kind}: must be one of {', '.join(LAUNCHES)}")
    machines = Machines.of(os.environ)
    local, rest = divmod(int(count), machines.count)
    if rest:
        raise UserError(f"NPROC={count}: must be a multiple of NNODES={machines.count}")
    threads = max(1, (os.cpu_count() or 1) // local)
    for name, value in {"OMP_NUM_THREADS": threads, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": 600}.items():
        os.environ.setdefault(name, str(value))
    os.environ[REQUESTED] = count
    if kind == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        names = "nnodes node_rank master_addr master_port"
        where = machines.options(names) or ["--standalone"]
        torchrun.main([*where, f"--nproc_per_node={local}", "-m", *program])
    else:
        names = "num_machines machine_rank main_process_ip main_process_port"
        where = [f"--config_file={CONFIGURATIONS / kind}.yaml", f"--num_processes={count}"]
        command = [*where, *machines.options(names), "-m", *program]
        launch_command(launch_command_parser().parse_args(command))


def main() -> None:
    """Launch, and end with the program's exit code."""
    if len(sys.argv) < 4:
        raise UserError(
            f"usage: python -m shared.processes.launcher N {'|'.join(LAUNCHES)} PROGRAM ..."
        )
    count, kind, *program = sys.argv[1:]
    logging.disable(logging.ERROR)  # of the launchers; the programs log in their own processes
    try:
        launch(count, kind, program)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"{program[0]}: process {rank} was ended by {name}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    cli.run(main, "shared.processes.launcher")
