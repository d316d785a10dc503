"""The tables and pictures of ``make reproduce-rlhf`` from finished runs: the frontier of reward
against KL, best-of-n, and over-optimisation of the reward model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.experiments import pictures
from rlhf.experiments.overoptimisation import Fit, Method, best_of_n, best_of_n_kl, fit
from shared.experiments.reproduce import Record, Row
from shared.experiments.tables import write_result
from shared.training.statistics import mean_and_standard_error

NONE_SEEN = "none seen"  # a peak beyond the data would be a guess


@dataclass(frozen=True)
class SweptRow(Row):
    """Runs of one method with one beta."""

    method: str = ""
    beta: float = 0.0


def rounded(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ten digits of every number: those beyond depend on the processor."""
    number = "{:.10g}".format
    return [
        {k: float(number(x)) if isinstance(x, float) else x for k, x in r.items()} for r in rows
    ]


def write(
    swept: Sequence[tuple[SweptRow, list[Record]]],
    over: Sequence[Record],
    samples: Record | None,
    results: Path,
) -> None:
    """Each table and picture whose runs are known.

    Args:
        swept: the rows of the frontier, each with its runs.
        over: runs without a penalty, one a seed.
        samples: the scores that ``rlhf.experiments.best_of_n`` left.
    """
    best = [] if samples is None else best_rows(samples)
    if best and samples is not None:
        about = {key: samples[key] for key in ("command", "environment", "seconds", "samples")}
        write_result(
            results / "best_of_n.json",
            BEST_COLUMNS,
            rounded(best),
            n=len(samples["prompts"]),
            **about,
        )
    if swept:
        rows = [row_of(row, runs) for row, runs in swept]
        write_result(results / "frontier.json", COLUMNS, rows)
        traces: dict[str, list[tuple[float, float]]] = {}
        for row, runs in swept:
            traces.setdefault(row.method, []).extend(
                (r["objective/kl"], r["rewards/gold/mean"]) for run in runs for r in run["records"]
            )
        pictures.frontier(rows, traces, best, results / "frontier.png")
    if over and samples is not None:
        series = [trained_series(over, samples), best_series(best, samples)]
        rows = rounded([row for fitted in series for row in fit_rows(fitted)])
        write_result(results / "overoptimisation.json", FIT_COLUMNS, rows)
        pictures.overoptimisation(series, results / "overoptimisation.png")


# -- frontier ------------------------------------------------------------------------------------

COLUMNS = (
    ("method", "method", ""),
    ("beta", "beta", "g"),
    ("n", "seeds", "d"),
    ("kl", "KL(policy ‖ reference), nats per sequence", ".2f"),
    ("kl_spread", "±", ".2f"),
    ("gold", "gold reward", ".3f"),
    ("gold_spread", "±", ".3f"),
    ("gain", "gain, reference's sd", ".2f"),
    ("proxy", "proxy reward", ".2f"),
    ("objective", "proxy gain - β KL", ".2f"),
    ("objective_spread", "±", ".2f"),
    ("length", "tokens", ".1f"),
    ("ended", "ended by itself", ".0%"),
    ("examples", "completions or pairs", ",d"),
    ("seconds", "training, s", ".0f"),
)


def row_of(row: SweptRow, runs: Sequence[Record]) -> dict[str, Any]:
    """Means and standard deviations over the seeds of what was measured on held-out prompts."""
    measured = [run["evaluation"] for run in runs]
    gold = [e["policy"]["gold"]["mean"] for e in measured]
    kl = [e["kl"] for e in measured]
    before, spread = (mean(e["reference"]["gold"][key] for e in measured) for key in ("mean", "sd"))
    proxies = [pair for e in measured if (pair := proxies_of(e))]  # DPO has none
    reached = [
        (ours["mean"] - theirs["mean"]) / theirs["sd"] - row.beta * x
        for (ours, theirs), x in zip(proxies, kl if proxies else [], strict=True)
    ]
    first = runs[0]
    return {
        "method": row.method,
        "beta": row.beta,
        "n": len(measured),
        "command": row.command,
        "environment": first["environment"],
        "threads": first["threads"],
        "prompts": measured[0]["prompts"],
        "kl": mean(kl),
        "kl_spread": _spread(kl),
        "kl_values": kl,
        "kl_standard_errors": [e["kl_standard_error"] for e in measured],
        "gold": mean(gold),
        "gold_spread": _spread(gold),
        "gold_values": gold,
        "gold_standard_errors": [e["policy"]["gold"]["standard_error"] for e in measured],
        "reference_gold": before,
        "reference_gold_sd": spread,
        "gain": (mean(gold) - before) / spread,
        "proxy": mean(ours["mean"] for ours, _ in proxies) if proxies else None,
        "objective": mean(reached) if reached else None,
        "objective_spread": _spread(reached),
        "length": mean(e["policy"]["length"] for e in measured),
        "ended": mean(e["policy"]["eos_rate"] for e in measured),
        "examples": first["steps"] * first["config"]["batch_size"],
        "seconds": mean(run["training_seconds"] for run in runs),
    }


def proxies_of(measured: Record) -> tuple[dict[str, float], dict[str, float]] | None:
    """Mean and deviation of the reward that was maximised: the policy's and the reference's."""
    others = ("gold", "length", "eos_rate")
    proxy = next((name for name in measured["policy"] if name not in others), None)
    return (measured["policy"][proxy], measured["reference"][proxy]) if proxy else None


def _wide(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


# -- best of n -----------------------------------------------------------------------------------

BEST_COLUMNS = (
    ("best_of", "n", "d"),
    ("kl", "KL, nats (bound)", ".2f"),
    ("gold", "gold reward, best by proxy", ".3f"),
    ("gold_standard_error", "±", ".3f"),
    ("gold_by_gold", "gold reward, best by gold", ".3f"),
    ("proxy", "proxy reward, best by proxy", ".2f"),
)


def scores_of(samples: Record) -> tuple[Tensor, Tensor]:
    """Proxy and gold reward of the reference's completions: [prompts, samples] each."""
    proxy, gold = (_wide(samples[name]) for name in ("proxy", "gold"))
    return proxy, gold


def best_rows(samples: Record) -> list[dict[str, Any]]:
    """Rewards of the best of 1, 2, 4, ... samples; the standard error is over the prompts."""
    proxy, gold = scores_of(samples)
    rows = []
    for n in (2**i for i in range(proxy.shape[1].bit_length())):
        by_proxy, error = mean_and_standard_error(best_of_n(proxy, gold, n))
        rows.append(
            {
                "best_of": n,
                "kl": best_of_n_kl(n),
                "gold": by_proxy,
                "gold_standard_error": error,
                "gold_by_gold": best_of_n(gold, gold, n).mean().item(),
                "proxy": best_of_n(proxy, proxy, n).mean().item(),
            }
        )
    return rows


# -- over-optimisation ---------------------------------------------------------------------------

FIT_COLUMNS = (
    ("method", "method", ""),
    ("reward", "reward", ""),
    ("alpha", "alpha", ".3f"),
    ("beta", "beta", ".3f"),
    ("r_squared", "R²", ".3f"),
    ("peak_told", "peak at d*", ""),
    ("farthest", "largest d seen", ".2f"),
    ("points", "points", "d"),
    ("n", "seeds", "d"),
    ("seconds", "seconds", ".0f"),
)


class Series(NamedTuple):
    """Rewards above the reference's mean, in its standard deviations, at distances d [points]."""

    what: str
    method: Method
    d: Tensor
    rewards: dict[str, Tensor]  # gold and proxy
    fits: dict[str, Fit]
    about: dict[str, Any]


def _series(
    what: str,
    method: Method,
    kl: Sequence[float],
    rewards: dict[str, list[float]],
    samples: Record,
    about: dict[str, Any],
) -> Series:
    d = _wide(kl).clamp(min=0).sqrt()  # below 0 by rounding at first
    scaled = {}
    for name, reference in zip(("proxy", "gold"), scores_of(samples), strict=True):
        values = _wide(rewards[name])
        scaled[name] = (values - reference.mean()) / reference.std()
    fits = {name: fit(method, d, values) for name, values in scaled.items()}
    return Series(what, method, d, scaled, fits, about)


def trained_series(over: Sequence[Record], samples: Record) -> Series:
    """Every rollout of the runs without a penalty, all seeds together."""
    records = [(run["config"]["reward"][0], r) for run in over for r in run["records"]]
    kept = {name: over[0][name] for name in ("command", "environment")}
    return _series(
        "PPO, beta 0",
        "rl",
        [r["objective/kl"] for _, r in records],
        {
            "proxy": [r[f"rewards/{name}/mean"] for name, r in records],
            "gold": [r["rewards/gold/mean"] for _, r in records],
        },
        samples,
        kept | {"n": len(over), "seconds": mean(r["training_seconds"] for r in over)},
    )


def best_series(best: Sequence[dict[str, Any]], samples: Record) -> Series:
    """Best of n by the proxy."""
    kept = {name: samples[name] for name in ("command", "environment", "seconds")}
    rewards = {name: [row[name] for row in best] for name in ("proxy", "gold")}
    return _series(
        "best of n", "bon", [row["kl"] for row in best], rewards, samples, kept | {"n": 1}
    )


def fit_rows(series: Series) -> list[dict[str, Any]]:
    """The fits of Gao et al. 2023 to gold and proxy, and where they say the reward is largest."""
    farthest = series.d.max().item()
    rows = []
    for name, fitted in series.fits.items():
        peak = peak_within(fitted, farthest)
        rows.append(
            {
                "method": series.what,
                "reward": name,
                "alpha": fitted.alpha,
                "beta": fitted.beta,
                "r_squared": fitted.r_squared,
                "peak": peak,
                "peak_told": NONE_SEEN if peak is None else f"{peak:.2f}",
                "farthest": farthest,
                "points": len(series.d),
                **series.about,
            }
        )
    return rows


def peak_within(fitted: Fit, farthest: float) -> float | None:
    """d* if it is among the distances that were seen."""
    best, _ = fitted.peak
    return best if best <= farthest else None
