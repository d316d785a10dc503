"""Starts training programs as fresh processes in a fraction of a second, with faults on request.

``python -m tests.zygote PROGRAM ...`` imports the programs once, computes nothing, and forks a
child (or one per rank) for every JSON line on its input; the children's exit codes are its output.
See ``tests.helpers.Processes``. Faults inside an application import it when they are asked for.
"""

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import TrainerControl, TrainerState, TrainingArguments

from shared import cli
from shared.language_models.trl import InOurFolder
from shared.run import checkpoint
from shared.run.run import Run
from tests.programs import SPECIMEN


def at_step(step: int, act: Any, folder: str = "") -> None:
    """Call ``act(run)`` when optimiser step ``step`` has been taken but not yet counted.

    TRL's trainers: when its gradients are there. ``folder``: only in the run of this folder's name.
    """
    original, before = Run.stepped, InOurFolder.on_pre_optimizer_step

    def stepped(self: Run, **metrics: torch.Tensor) -> None:
        if self.step + 1 == step and folder in ("", self.folder.name):
            act(self)
        original(self, **metrics)

    def trainer(
        self: InOurFolder,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        if state.global_step + 1 == step:
            act(self.run)
        before(self, args, state, control, **given)

    Run.stepped = stepped  # type: ignore[method-assign]
    InOurFolder.on_pre_optimizer_step = trainer  # type: ignore[method-assign]


def send(name: str, step: str, rank: str = "0", folder: str = "") -> None:
    """A signal to this process during a step."""
    if os.environ.get("RANK", "0") == rank:
        at_step(int(step), lambda _: os.kill(os.getpid(), signal.Signals[name]), folder)


def poison(step: str) -> None:
    """NaN in the loss of a step (counted from 0) of the specimen, which sums two parts of it."""
    train, calls = importlib.import_module(SPECIMEN), iter(range(1_000_000))
    original = train.global_sum

    def global_sum(x: torch.Tensor) -> torch.Tensor:
        return original(x) * (float("nan") if next(calls) == 2 * int(step) else 1)

    train.global_sum = global_sum


def limit(size: str, step: str) -> None:
    """From a step on no file may grow beyond ``size`` bytes, as on a full disk."""
    at_step(int(step), lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size))))


def full_metrics(step: str) -> None:
    """From a step on every write to metrics.jsonl meets a full disk."""

    def link(run: Run) -> None:
        if run.accelerator.is_main_process:
            path = run.folder / "metrics.jsonl"
            path.rename(run.folder / "metrics.saved")
            path.symlink_to("/dev/full")

    at_step(int(step), link)


def kill(seconds: str) -> None:
    """SIGKILL this many seconds after the program's start."""
    threading.Timer(float(seconds), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


def not_a_number(step: str) -> None:
    """NaN in the gradient of this number, counted as they are computed from 1."""
    original, calls = Accelerator.backward, iter(range(1, 1_000_000))

    def backward(self: Accelerator, loss: torch.Tensor, **given: Any) -> None:
        original(self, loss * float("nan") if next(calls) == int(step) else loss, **given)

    Accelerator.backward = backward  # type: ignore[method-assign]
    if update := sys.modules.get("trpo_ppo.ppo"):  # it writes its gradients out by hand
        gathered = update.flat

        def flat(gradients: Any) -> torch.Tensor:
            return gathered(gradients) * (float("nan") if next(calls) == int(step) else 1)

        update.flat = flat


def worthless(call: str) -> None:
    """NaN as every reward of a model's completions, in the call of this number."""
    environment = importlib.import_module("rlhf.rewards.environment")
    original, calls = environment.call, iter(range(1, 1_000_000))

    def none(completions: list[str], **_: Any) -> list[float]:
        return [float("nan")] * len(completions)

    def worth(rewards: Any, *given: Any) -> Any:
        return original([none] * len(rewards) if next(calls) == int(call) else rewards, *given)

    environment.call = worth


def broken(step: str) -> None:
    """NaN as the reward of the step of this number, counted over all environments."""
    environments = importlib.import_module("trpo_ppo.envs").Environments
    original, calls = environments._step, iter(range(1, 1_000_000_000))

    def step_(self: Any, i: int, action: Any) -> tuple[float, bool, bool]:
        reward, terminated, truncated = original(self, i, action)
        return (float("nan") if next(calls) == int(step) else reward), terminated, truncated

    environments._step = step_


def die(stage: str, folder: str) -> None:
    """SIGKILL within ``write_folder`` of ``folder``: half-way through a file, or at the rename."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(method: str) -> None:
        original = getattr(Path, method)

        def write(self: Path, content: Any) -> Any:
            own = self.name in (stage, f".tmp-{stage}-{os.getpid()}")
            if own and folder in self.parent.name:
                original(self, content[: len(content) // 2])
                kill()
            return original(self, content)

        setattr(Path, method, write)

    save_file, rename = checkpoint.save_file, Path.rename

    def save_half(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        if stage == path.name and folder in path.parent.name:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    def dying_rename(self: Path, target: Any) -> Any:
        if folder in self.name and stage == "before rename":
            kill()
        result = rename(self, target)
        if folder in self.name and stage == "after rename":
            kill()
        return result

    half("write_text")
    half("write_bytes")
    checkpoint.save_file = save_half  # type: ignore[assignment]
    Path.rename = dying_rename  # type: ignore[method-assign]


def fsdp() -> None:
    """FSDP 2 over gloo, as shared/processes/fsdp.yaml asks for; Accelerate offers it on GPUs only.

    It is made to take the CPU processes for GPUs; the sharding and the collectives are real.
    """
    os.environ |= {
        "ACCELERATE_USE_CPU": "false",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    }
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


FAULTS = {
    "signal": send,
    "poison": poison,
    "limit": limit,
    "full": full_metrics,
    "die": die,
    "fsdp": fsdp,
    "kill": kill,
    "nan": not_a_number,
    "worthless": worthless,
    "broken": broken,
}


def child(job: dict[str, Any], rank: int) -> None:
    """Become the program; never returns."""
    for number, name in ((1, "out"), (2, "err")):
        target = os.open(f"{job['logs']}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)
    os.environ.update(job["env"])
    os.chdir(job["folder"])
    if job["ranks"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job["ranks"]),
            "LOCAL_WORLD_SIZE": str(job["ranks"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(job["port"]),
        }
    code = 0
    try:
        for fault in filter(None, job["fault"].split(";")):
            name, *arguments = fault.split(":")
            FAULTS[name](*arguments)
        sys.argv = [job["program"], *job["argv"]]
        cli.run(importlib.import_module(job["program"]).main, job["program"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pids: list[int], seconds: float) -> list[int]:
    """Exit codes of the children, negative for a signal; those that take too long are killed."""
    codes: dict[int, int] = {}
    end = time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def main() -> None:
    for program in sys.argv[1:]:
        importlib.import_module(program)
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for rank in range(job["ranks"]):
            pid = os.fork()
            if pid == 0:
                child(job, rank)
            pids.append(pid)
        print(json.dumps(wait(pids, job["seconds"])), flush=True)


if __name__ == "__main__":
    main()
