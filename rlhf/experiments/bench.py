"""Speed of PPO against TRL's last PPO trainer: ``python -m rlhf.experiments.bench [--json FILE]``.

Completions per CPU-second of one thread, so other work on the machine hardly disturbs it, and peak
memory. Every figure is measured in a process of its own, the rows in turn, round after round;
ratios are of one round.
"""

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from rlhf.config import Config
from rlhf.experiments.bench_loops import Clock, ours, trl_ppo, trl_rloo, write_inputs
from rlhf.experiments.trl_ppo import FOLDER, VERSION
from shared import cli
from shared.config import Count
from shared.errors import UserError
from shared.experiments.bench import NO_GPU, check_json, measure_alone
from shared.experiments.tables import describe_columns, markdown, write_result
from shared.run.environment import describe

Row = Literal["ours", "ours-separate", "ours-bf16", "trl-1.12", "rloo"]
PEER: Row = "trl-1.12"
NOTE = (
    "One iteration is a rollout, its reference pass and two passes of one optimiser step each; the "
    "first one is not timed. Same model, adapter, prompts, sizes, reward. Not the same algorithm: "
    "our critic is a head on the policy's trunk, which it does not train; TRL's is a second model "
    "of the policy's size, all of it trained. With `--critic separate` ours is a second trunk, of "
    "which the adapter is trained. RLOO has no critic."
)


class About(NamedTuple):
    """What a row is called, and how its settings differ from the common ones."""

    name: str
    changes: dict[str, Any]


ROWS: dict[Row, About] = {  # in the order of a round
    "ours": About("ours, float32", {}),
    "ours-separate": About("ours, float32, `--critic separate`", {"critic": "separate"}),
    "ours-bf16": About("ours, bf16 autocast", {"mixed_precision": "bf16"}),
    "trl-1.12": About(f"TRL {VERSION} `PPOTrainer`, float32", {}),
    "rloo": About("TRL 1.16 `RLOOTrainer`, float32, no critic", {}),
}


@dataclass(frozen=True)
class Options:
    """Time an iteration of our PPO, of TRL 1.12's and of TRL 1.16's RLOO, all with an adapter."""

    repetitions: Count = 3
    """Rounds; each measures every row once, in a new process."""
    iterations: Count = 2
    """Iterations per measurement, after a first one that is not timed."""
    model: str = "smollm2"
    """As in rlhf.ppo."""
    batch_size: Count = 16
    """Completions of an iteration."""
    micro_batch: Count = 16
    """Completions computed at a time; must divide --batch-size and be a multiple of 4."""
    completion: Count = 24
    """Tokens of a completion at most."""
    data: str = "data"
    """Folder of the data sets and of SmolLM2."""
    json: str = ""
    """File that receives every figure, with the environment."""
    only: Literal["", Row] = ""
    """Measure this row once, in this process, and print it as JSON: what every round is made of."""


def config_of(options: Options) -> Config:
    """What all rows have in common; the rest are the defaults of rlhf.ppo."""
    return Config(
        model=options.model,
        data=options.data,
        iterations=options.iterations,
        batch_size=options.batch_size,
        micro_batch=options.micro_batch,
        completion=options.completion,
    )


def measure(row: Row, config: Config) -> dict[str, float]:
    """One row in this process; ``config.iterations`` are timed, after one that is not."""
    with tempfile.TemporaryDirectory() as name:
        folder, (_, changes) = Path(name), ROWS[row]
        prompts, reward = write_inputs(folder, config)
        config = replace(
            config,
            **changes,
            prompts=str(prompts),
            reward=(str(reward),),
            gold="",
            checkpoint_every=10**6,
            out=str(folder / "run"),
        )
        clock = Clock(config.iterations)
        config = replace(config, iterations=1 + config.iterations)
        torch.set_flush_denormal(True)  # shared.processes.launch does so for ours
        loops = {"trl-1.12": trl_ppo, "rloo": trl_rloo}
        return clock.figures(config.batch_size, loops.get(row, ours)(config, clock))


def in_new_process(row: Row, options: Options) -> dict[str, float]:
    named = ("iterations", "model", "data", "batch_size", "micro_batch", "completion")
    given = {name: getattr(options, name) for name in named}
    env = NO_GPU | {"HF_HUB_DISABLE_TELEMETRY": "1", "ACCELERATE_USE_CPU": "true"}
    if row == PEER:
        env["PYTHONPATH"] = str(FOLDER)
    return measure_alone("rlhf.experiments.bench", row, given, env)


COLUMNS = (
    ("name", "training loop", ""),
    ("samples_per_cpu_second", "completions per CPU-second", ".2f"),
    ("least", "least", ".2f"),
    ("most", "most", ".2f"),
    ("over_peer", f"over TRL {VERSION}", ".2f"),
    ("peak_gigabytes", "peak memory, GB", ".1f"),
    ("memory_of_peer", f"of TRL {VERSION}", ".0%"),
    ("trained", "trained parameters", ",d"),
    ("seconds", "CPU-s per iteration", ".1f"),
    ("sampling", "sampling", ".0%"),
    ("judging", "reference pass", ".0%"),
    ("update", "update", ".0%"),
)
PHASES = ("sampling", "judging", "update")


def summary(rounds: Sequence[dict[Row, dict[str, float]]]) -> list[dict[str, Any]]:
    """One table row for each loop: medians over the rounds, ratios within a round.

    The phases are shares of the iteration.
    """
    table = []
    for row, about in ROWS.items():
        own, peer = [one[row] for one in rounds], [one[PEER] for one in rounds]
        speeds = [one["samples_per_cpu_second"] for one in own]

        def ratio(key: str, own: Any = own, peer: Any = peer) -> float:
            values = (a[key] / b[key] for a, b in zip(own, peer, strict=True))
            return round(statistics.median(values), 3)

        def median(key: str, own: Any = own) -> float:
            return statistics.median(one[key] for one in own)

        table.append(
            {
                "row": row,
                "name": about.name,
                "n": len(rounds),
                "samples_per_cpu_second": round(statistics.median(speeds), 3),
                "least": round(min(speeds), 3),
                "most": round(max(speeds), 3),
                "over_peer": ratio("samples_per_cpu_second"),
                "peak_gigabytes": round(median("peak_bytes") / 1e9, 2),
                "memory_of_peer": ratio("peak_bytes"),
                "trained": int(own[0]["trained"]),
                "seconds": round(median("seconds"), 2),
            }
            | {
                phase: round(statistics.median(one[phase] / one["seconds"] for one in own), 3)
                for phase in PHASES
                if phase in own[0]
            }
        )
    return table


def check(options: Options) -> None:
    """UserError unless the sizes fit, the peer is there and results can be written."""
    if options.batch_size % options.micro_batch or options.micro_batch % 4:
        raise UserError(
            f"--micro-batch {options.micro_batch}: must divide --batch-size "
            f"{options.batch_size} and be a multiple of 4"
        )
    check_json(options.json)
    if not options.only and not (FOLDER / "trl").is_dir():
        raise UserError(f"{FOLDER}: TRL {VERSION} is not there; `make bench-rlhf` puts it there")


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m rlhf.experiments.bench"))
    check(options)
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(measure(options.only, config_of(options))))
        return
    rounds: list[dict[Row, dict[str, float]]] = []
    for count in range(1, options.repetitions + 1):
        rounds.append({row: in_new_process(row, options) for row in ROWS})
        told = (f"{row} {one['samples_per_cpu_second']:.2f}" for row, one in rounds[-1].items())
        print(f"round {count}/{options.repetitions}: {', '.join(told)}", flush=True)
    table = summary(rounds)
    print("\n" + markdown({"columns": describe_columns(COLUMNS), "rows": table}) + "\n" + NOTE)
    if options.json:
        write_result(
            Path(options.json),
            COLUMNS,
            table,
            note=NOTE,
            rounds=rounds,
            load_average=os.getloadavg(),
            options=asdict(options),
            environment=describe(),
        )


if __name__ == "__main__":
    cli.run(main, "rlhf.experiments.bench")
