"""All runs behind the tables and figures of vae/README.md: ``python -m vae.experiments.reproduce``.

Runs that are finished are kept, one that was cut off is resumed, so that the command can be
stopped and called again. About three hours on two cores.
"""

import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from shared import cli
from shared.experiments.reproduce import (
    Options,
    Record,
    Reproduction,
    Row,
    is_finished,
    read_config,
)
from shared.experiments.tables import write_result
from vae import pictures

RUNS = Path("runs/reproduce")
RESULTS = Path("vae/results")
PRETRAINED = Path("vae/pretrained")
SEEDS = (0, 1, 2)
BETAS = (0.25, 0.5, 1, 2, 4, 8)
VIB_BETAS = (0, 1e-3, 1e-2, 1e-1)
VIB_NETWORKS = {"vib": "MLP of the paper", "vib-conv": "convolutional"}  # preset: what it is

ARGUMENTS = (
    {f"beta-{beta:g}": f"default --beta {beta:g} --epochs 20" for beta in BETAS}
    | {f"{vib}-{beta:g}": f"{vib} --beta {beta:g}" for vib in VIB_NETWORKS for beta in VIB_BETAS}
    | {"paper": "paper --samples 5 --epochs 36 --evaluation-samples 500"}  # 70 minutes on a core
)
ROWS = {"default": Row("vae.train", "default --seed SEED", SEEDS)} | {
    name: Row("vae.train", arguments) for name, arguments in ARGUMENTS.items()
}
IWAE = "Burda et al. 2015, Table 1"
ALEMI = "Alemi et al. 2016, Table 1"


def _details(folder: Path) -> Record:
    return {"samples_in_training": read_config(folder)["samples"]}


REPRODUCTION = Reproduction(ROWS, RUNS, RESULTS / "runs", _details)


def read(row: str) -> list[Record]:
    """The runs of a row: metrics on the test digits, what each cost and where it ran."""
    return [
        {
            "run": run["run"],
            "command": run["command"],
            "seconds": run["training_seconds"],
            "environment": run["environment"],
            "samples_in_training": run["samples_in_training"],
            **run["unseen"],
        }
        for run in REPRODUCTION.complete_rows({row: REPRODUCTION.names(row)})[row]
    ]


def headline() -> None:
    """Each headline number with its spread, the paper's beside it, the command and the machine."""
    seeds = read("default")
    values = [run["log_likelihood"] for run in seeds]
    (paper,) = read("paper")

    def row(
        what: str, run: Record, reference: float, source: str, **measured: Any
    ) -> dict[str, Any]:
        kept = {key: run[key] for key in ("command", "seconds", "environment", "digits")}
        kept["threads"] = run["environment"]["torch_threads"]
        return {"what": what, "reference": reference, "source": source, **kept, **measured}

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
        sweep = [(beta, run) for beta in VIB_BETAS for run in read(f"{vib}-{beta:g}")]
        beta, best = min(sweep, key=lambda run: run[1]["errors"])
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
    betas = [{"beta": beta, **run} for beta in BETAS for run in read(f"beta-{beta:g}")]
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
        {"network": network, "beta": beta, **run}
        for preset, network in VIB_NETWORKS.items()
        for beta in VIB_BETAS
        for run in read(f"{preset}-{beta:g}")
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
    """The headline models that are here to vae/pretrained, pictures to vae/results."""
    published = {"default": "default-seed0", "paper": "paper", "vib": "vib-conv-0.001"}
    for name, run in published.items():
        if is_finished(RUNS / run):
            shutil.rmtree(PRETRAINED / name, ignore_errors=True)
            shutil.copytree(RUNS / run / "model", PRETRAINED / name)
    drawn = RUNS / published["default"]
    for picture in ("curves", "samples", "reconstructions", "traversals", "interpolation"):
        if is_finished(drawn):
            shutil.copy(drawn / "pictures" / f"{picture}.png", RESULTS)


def main() -> None:
    options = cli.read_options(Options, "vae.experiments.reproduce")
    names = REPRODUCTION.chosen(options)
    if not options.collect:
        REPRODUCTION.train(names)
    if not options.only:
        headline()
        sweeps()
        publish()
        print(f"results in {RESULTS}, models in {PRETRAINED}; now: make tables")


if __name__ == "__main__":
    cli.run(main, "vae.experiments.reproduce")
