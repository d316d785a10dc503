"""The direction of a KL, drawn and in numbers.

``python -m shared.experiments.kl.demo [--out DIR]``

One Gaussian is fitted to a target with two modes, 1/2 N(-s, 1) + 1/2 N(s, 1), in both directions;
the divergences of a coin and of a forecast are worked out; two distributions are moved apart until
they do not overlap; and the edges are shown at which torch's own functions are wrong. Nothing is
sampled: integrals are sums over a grid in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shared import cli
from shared.experiments.kl import demo_edges as demo_kl_edges
from shared.experiments.kl.demo_picture import draw
from shared.experiments.tables import describe_columns, markdown, write_result
from shared.kl import (
    cross_entropy_from_probs,
    entropy_from_probs,
    jeffreys_from_probs,
    js_from_probs,
    kl_from_probs,
    normal_log_prob,
    wasserstein_1d,
)
from shared.run.environment import describe

SEPARATIONS = (1.0, 2.0, 2.5, 3.0, 4.0)
# The trapezoidal rule with this step is exact to rounding for such integrands.
NODES = torch.linspace(-12, 12, 1201, dtype=torch.float64)
WEIGHTS = torch.softmax(-NODES.square() / 2, 0)  # N(0, 1) on the nodes

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """Fits of a Gaussian to two modes, worked numbers, disjoint supports: tables and a picture."""

    out: str = "runs/demo-kl"
    """Folder for the picture and the tables as JSON."""


class Fit(NamedTuple):
    """A minimum: mean >= 0 (its mirror image is one too), standard deviation, nats, starts."""

    mu: float
    sigma: float
    nats: float
    starts: tuple[str, ...]


def log_normal(x: Tensor, mu: Tensor | float, log_sigma: Tensor | float) -> Tensor:
    return normal_log_prob(x, torch.as_tensor(mu).double(), 2 * torch.as_tensor(log_sigma).double())


def log_target(x: Tensor, s: float) -> Tensor:
    """log of 1/2 N(x; -s, 1) + 1/2 N(x; s, 1)."""
    return torch.logaddexp(log_normal(x, -s, 0.0), log_normal(x, s, 0.0)) - math.log(2)


def forward(s: float) -> Objective:
    """D(target || fit) of parameters (mu, log sigma): the target is averaged over."""
    x = torch.cat([NODES - s, NODES + s])

    def nats(parameters: Tensor) -> Tensor:
        log_ratio = log_target(x, s) - log_normal(x, parameters[0], parameters[1])
        return (torch.cat([WEIGHTS, WEIGHTS]) / 2 * log_ratio).sum()

    return nats


def reverse(s: float) -> Objective:
    """D(fit || target) of parameters (mu, log sigma): the fit is averaged over."""

    def nats(parameters: Tensor) -> Tensor:
        x = parameters[0] + parameters[1].exp() * NODES
        log_ratio = log_normal(x, parameters[0], parameters[1]) - log_target(x, s)
        return (WEIGHTS * log_ratio).sum()

    return nats


def descend(objective: Objective, mu: float, sigma: float) -> Fit:
    """The minimum that L-BFGS finds from a start."""
    parameters = torch.tensor([mu, math.log(sigma)], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=500,
        tolerance_grad=1e-11,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(parameters)
        value.backward()
        return value

    optimizer.step(closure)
    mu, log_sigma = parameters.detach().tolist()
    return Fit(abs(mu), math.exp(log_sigma), objective(parameters).item(), ())


def starts(s: float) -> dict[str, tuple[float, float]]:
    """Name -> mean and standard deviation."""
    return {"between": (0.0, 1.0), "wide": (s / 4, math.hypot(1, s)), "mode": (s, 1.0)}


def fits(objective: Objective, s: float) -> list[Fit]:
    """The different minima that the starts lead to, best first."""
    minima: list[Fit] = []
    for name, start in starts(s).items():
        fit = descend(objective, *start)
        for i, minimum in enumerate(minima):
            if math.isclose(minimum.mu, fit.mu, abs_tol=1e-4):
                minima[i] = minimum._replace(starts=(*minimum.starts, name))
                break
        else:
            minima.append(fit._replace(starts=(name,)))
    return sorted(minima, key=lambda fit: fit.nats)


FIT_COLUMNS = (
    ("separation", "modes at ±", "g"),
    ("direction", "minimised", ""),
    ("minimum", "minimum", ""),
    ("mu", "mean, ±", ".3f"),
    ("sigma", "standard deviation", ".3f"),
    ("nats", "nats", ".4f"),
    ("starts", "reached from", ""),
)


def fit_table(separations: Sequence[float]) -> list[dict[str, Any]]:
    """Every minimum found, in both directions, a row each."""
    directions = {"D(target ‖ fit)": forward, "D(fit ‖ target)": reverse}
    return [
        {
            "separation": s,
            "direction": direction,
            "minimum": "local" if rank else "global",
            "mu": fit.mu,
            "sigma": fit.sigma,
            "nats": fit.nats,
            "starts": ", ".join(fit.starts),
        }
        for s in separations
        for direction, make in directions.items()
        for rank, fit in enumerate(fits(make(s), s))
    ]


NUMBER_COLUMNS = (
    ("quantity", "quantity", ""),
    ("first", "first", ""),
    ("second", "second", ""),
    ("bits", "bits", ".4f"),
    ("nats", "nats", ".4f"),
    ("hartleys", "hartleys", ".4f"),
)


def number_table() -> list[dict[str, Any]]:
    """A fair and a biased coin; a day that is dry with 0.9 under forecasts of 0.8 and 0.5."""

    def row(quantity: str, function: Callable[..., Tensor], *distributions: list[float]) -> Any:
        arguments = [torch.tensor(p, dtype=torch.float64) for p in distributions]
        values = {
            unit: function(*arguments, unit=unit).item() for unit in ("bits", "nats", "hartleys")
        }
        names = dict(zip(("first", "second"), map(str, distributions), strict=False))
        return {"quantity": quantity} | names | values

    fair, biased, forecast = [0.5, 0.5], [0.9, 0.1], [0.8, 0.2]
    return [
        row("H(p)", entropy_from_probs, fair),
        row("H(p)", entropy_from_probs, biased),
        row("H(p, q)", cross_entropy_from_probs, fair, biased),
        row("H(p, q)", cross_entropy_from_probs, biased, fair),
        row("D(p ‖ q)", kl_from_probs, fair, biased),
        row("D(p ‖ q)", kl_from_probs, biased, fair),
        row("D(p ‖ q)", kl_from_probs, biased, forecast),
        row("D(p ‖ q) + D(q ‖ p)", jeffreys_from_probs, fair, biased),
        row("JSD(p, q)", js_from_probs, fair, biased),
    ]


SHIFT_COLUMNS = (
    ("shift", "shift", "d"),
    ("kl", "D(p ‖ q), nats", ""),
    ("js", "JSD, nats", ".4f"),
    ("wasserstein", "W1", ".4f"),
)


def shift_table() -> list[dict[str, Any]]:
    """p uniform on 0, 1, 2, 3 and q the same some places further on; JSON knows no infinity."""
    width = 4
    p = torch.zeros(12, dtype=torch.float64)
    p[:width] = 1 / width
    places = torch.arange(12.0, dtype=torch.float64)
    rows = []
    for shift in range(9):
        q = p.roll(shift)
        kl = kl_from_probs(p, q).item()
        moved = wasserstein_1d(places, places, x_weights=p, y_weights=q)
        rows.append(
            {
                "shift": shift,
                "width": width,
                "kl": f"{kl:.4f}" if math.isfinite(kl) else "infinite",
                "js": js_from_probs(p, q).item(),
                "wasserstein": moved.item(),
            }
        )
    return rows


def main() -> None:
    options = cli.read_options(Options, "shared.experiments.kl.demo")
    out = Path(options.out)
    tables = {
        "demo.json": (FIT_COLUMNS, fit_table(SEPARATIONS)),
        "demo_numbers.json": (NUMBER_COLUMNS, number_table()),
        "demo_shifts.json": (SHIFT_COLUMNS, shift_table()),
        "demo_edges.json": (demo_kl_edges.COLUMNS, demo_kl_edges.edge_table()),
    }
    for name, (columns, rows) in tables.items():
        print(markdown({"columns": describe_columns(columns), "rows": rows}))
        write_result(out / name, columns, rows, environment=describe())
    grid = [step / 10 for step in range(5, 46)]
    draw(out / "demo.png", fit_table(grid), shift_table(), log_target)
    print(f"tables and demo.png in {out}")


if __name__ == "__main__":
    cli.run(main, "shared.experiments.kl.demo")
