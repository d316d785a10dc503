"""All runs behind the tables and figures of vae/README.md: ``python -m vae.experiments.reproduce``.

Runs that are finished are kept, one that was cut off is resumed, so that the command can be
stopped and called again. About three hours on two cores.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from shared import cli
from shared.errors import UserError
from shared.experiments.reproduce import make_sure, read_run
from shared.experiments.tables import write_result
from vae import pictures

RUNS = Path("runs/reproduce")
RESULTS = Path("vae/results")
PRETRAINED = Path("vae/pretrained")
SEEDS = (0, 1, 2)
BETAS = (0.25, 0.5, 1, 2, 4, 8)
VIB_BETAS = (0, 1e-3, 1e-2, 1e-1)
VIB_NETWORKS = {"vib": "MLP of the paper", "vib-conv": "convolutional"}  # preset: what it is

COMMANDS = (
    {f"default-seed{seed}": f"default --seed {seed}" for seed in SEEDS}
    | {f"beta-{beta:g}": f"default --beta {beta:g} --epochs 20" for beta in BETAS}
    | {f"{vib}-{beta:g}": f"{vib} --beta {beta:g}" for vib in VIB_NETWORKS for beta in VIB_BETAS}
    | {"paper": "paper --samples 5 --epochs 36 --evaluation-samples 500"}  # 70 minutes on a core
)
IWAE = "Burda et al. 2015, Table 1"
ALEMI = "Alemi et al. 2016, Table 1"


@dataclass(frozen=True)
class Options:
    """Train everything and write vae/results and vae/pretrained anew."""

    only: str = ""
    """Train only the runs whose names begin so; results are not written."""
    collect: bool = False
    """Train nothing: write the results of the runs that are there."""


def train(name: str) -> None:
    """Make sure that the run is there and finished."""
    make_sure("vae.train", COMMANDS[name], RUNS / name)


def read(name: str) -> dict[str, Any]:
    """One run: its metrics on the test digits, what it cost and where it ran."""
    run = read_run("vae.train", COMMANDS[name], RUNS / name)
    config = json.loads((RUNS / name / "config.json").read_text())["config"]
    return {
        "run": name,
        "command": run["command"],
        "seconds": run["training_seconds"],
        "environment": run["environment"],
        "samples_in_training": config["samples"],
        **run["unseen"],
    }


def headline() -> None:
    """Each headline number with its spread, the paper's beside it, the command and the machine."""
    seeds = [read(f"default-seed{seed}") for seed in SEEDS]
    values = [run["log_likelihood"] for run in seeds]
    paper = read("paper")

    def row(what: str, run: dict[str, Any], reference: float, source: str, **own: Any) -> Any:
        kept = {key: run[key] for key in ("command", "seconds", "environment", "digits")}
        kept["threads"] = run["environment"]["torch_threads"]
        return {"what": what, "reference": reference, "source": source, **kept, **own}

    likelihood = {"metric": "test log-likelihood", "unit": "nats"}
    rows = [
        row(
            "VAE, residual MLP, K = 1 (`make train-vae`)",
            seeds[0],
            -86.76,
            f"{IWAE}, VAE k = 1",
            value=mean(values),
            spread=stdev(values),
            spread_is="standard deviation over seeds",
            n=len(seeds),
            samples=seeds[0]["importance_samples"],
            **likelihood,
        ),
        row(
            f"convolutional, DReG, K = {paper['samples_in_training']}",
            paper,
            -84.78,
            f"{IWAE}, IWAE k = 50",
            value=paper["log_likelihood"],
            spread=paper["log_likelihood_standard_error"],
            spread_is="standard error over digits",
            n=1,
            samples=paper["importance_samples"],
            **likelihood,
        ),
    ]
    for vib, network in VIB_NETWORKS.items():
        sweep = [(beta, read(f"{vib}-{beta:g}")) for beta in VIB_BETAS]
        beta, best = min(sweep, key=lambda one: one[1]["errors"])
        percent = best["error_percent"]
        rows.append(
            row(
                f"VIB, {network}, best of {len(sweep)} beta: {beta:g}",
                best,
                1.13,
                f"{ALEMI}, beta 1e-3",
                metric="test error",
                unit="%",
                n=1,
                value=percent,
                spread=(percent * (100 - percent) / best["digits"]) ** 0.5,
                spread_is="standard error over digits",
            )
        )
    columns = [
        ("what", "model", ""),
        ("metric", "metric", ""),
        ("value", "ours", ".2f"),
        ("spread", "±", ".2f"),
        ("spread_is", "± is", ""),
        ("n", "runs", "d"),
        ("unit", "unit", ""),
        ("reference", "paper", ".2f"),
        ("source", "from", ""),
        ("seconds", "training, s", ".0f"),
        ("threads", "threads", "d"),
    ]
    write_result(RESULTS / "headline.json", columns, rows)


def sweeps() -> None:
    """Rate against distortion over beta, and error against beta of the information bottleneck."""
    betas = [{"beta": beta, **read(f"beta-{beta:g}")} for beta in BETAS]
    columns = [
        ("beta", "beta", "g"),
        ("rate", "rate", ".2f"),
        ("distortion", "distortion", ".2f"),
        ("elbo", "ELBO", ".2f"),
        ("log_likelihood", "log-likelihood", ".2f"),
        ("active_units", "active units", "d"),
        ("probe_accuracy", "linear probe", ".2%"),
        ("aggregate_posterior_kl", "KL(q(z) ‖ p(z))", ".2f"),
    ]
    write_result(RESULTS / "beta_sweep.json", columns, betas)
    pictures.rate_distortion(betas, RESULTS / "rate_distortion.png")

    vib = [
        {"network": network, "beta": beta, **read(f"{preset}-{beta:g}")}
        for preset, network in VIB_NETWORKS.items()
        for beta in VIB_BETAS
    ]
    columns = [
        ("network", "network", ""),
        ("beta", "beta", "g"),
        ("error_percent", "test error, %", ".2f"),
        ("error_percent_of_mean_latent", "error of the mean latent, %", ".2f"),
        ("rate", "I(X; Z) ≤ rate, nats", ".2f"),
        ("information_about_class_at_least", "I(Z; Y) ≥, nats", ".3f"),
        ("cross_entropy", "cross-entropy, nats", ".4f"),
    ]
    write_result(RESULTS / "vib_sweep.json", columns, vib)
    pictures.bottleneck(vib, RESULTS / "vib.png")


def publish() -> None:
    """The headline models to vae/pretrained, the default run's pictures to vae/results."""
    published = {"default": "default-seed0", "paper": "paper", "vib": "vib-conv-0.001"}
    for name, run in published.items():
        shutil.rmtree(PRETRAINED / name, ignore_errors=True)
        shutil.copytree(RUNS / run / "model", PRETRAINED / name)
    for picture in ("curves", "samples", "reconstructions", "traversals", "interpolation"):
        shutil.copy(RUNS / "default-seed0" / "pictures" / f"{picture}.png", RESULTS)


def main() -> None:
    options = cli.check(cli.parse(Options, sys.argv[1:], "python -m vae.experiments.reproduce"))
    names = [name for name in COMMANDS if name.startswith(options.only)]
    if not names:
        raise UserError(f"--only {options.only}: no run's name begins so; {', '.join(COMMANDS)}")
    for name in names if not options.collect else []:
        train(name)
    if not options.only:
        headline()
        sweeps()
        publish()
        print(f"results in {RESULTS}, models in {PRETRAINED}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "vae.experiments.reproduce")
