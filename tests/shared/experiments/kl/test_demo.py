"""The demonstration against quadrature by scipy, closed forms and numbers known to many digits."""

import json
import math
import sys

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import wasserstein_distance

from shared.errors import UserError
from shared.experiments.kl import demo as demo_kl
from shared.experiments.kl import demo_edges as demo_kl_edges
from shared.experiments.tables import markdown
from tests.helpers import ROOT

FORWARD, REVERSE = "D(target ‖ fit)", "D(fit ‖ target)"


@pytest.fixture(scope="module")
def fits():
    return demo_kl.fit_table(demo_kl.SEPARATIONS)


def log_normal(x, mu=0.0, sigma=1.0):
    return -(((x - mu) / sigma) ** 2) / 2 - np.log(sigma) - math.log(2 * math.pi) / 2


def log_target(x, s):
    return np.logaddexp(log_normal(x, -s), log_normal(x, s)) - math.log(2)


def integrand(x, direction, mu, sigma, s):
    log_p, log_q = log_target(x, s), log_normal(x, mu, sigma)
    if direction == REVERSE:
        log_p, log_q = log_q, log_p
    return np.exp(log_p) * (log_p - log_q)


def on_a_grid(*arguments):
    x, dx = np.linspace(-50, 50, 5001, retstep=True)
    return integrand(x, *arguments).sum() * dx


def test_the_divergence_of_every_fit(fits):
    for row in fits:
        mu, sigma, s = row["mu"], row["sigma"], row["separation"]
        edge = 10 * sigma + s
        value, _ = quad(
            integrand,
            -edge,
            edge,
            (row["direction"], mu, sigma, s),
            points=[-s, 0, mu, s],
            limit=500,
            epsabs=1e-12,
        )
        assert row["nats"] == pytest.approx(value, abs=1e-10), row


def test_every_fit_is_a_minimum(fits):
    h = 1e-3
    for row in fits:
        mu, sigma, s = row["mu"], row["sigma"], row["separation"]
        around = [
            on_a_grid(row["direction"], mu + dm, sigma + ds, s)
            for dm, ds in ((h, 0), (-h, 0), (0, h), (0, -h), (h, h), (h, -h), (-h, h), (-h, -h))
        ]
        assert min(around) > row["nats"], row
        for up, down in ((around[0], around[1]), (around[2], around[3])):
            assert (up - down) / (2 * h) == pytest.approx(0, abs=1e-5), row


@pytest.mark.parametrize(("s", "count"), [(1.0, 1), (2.0, 1), (2.5, 2), (3.0, 2), (4.0, 2)])
def test_no_minimum_of_the_reverse_was_missed(fits, s, count):
    u, du = np.linspace(-7, 7, 161, retstep=True)
    mu, log_sigma = np.linspace(0, s + 1, 151), np.linspace(-1, math.log(2 * s + 1), 151)
    x = mu[:, None, None] + np.exp(log_sigma)[:, None] * u
    log_p = log_normal(u) - log_sigma[:, None]
    values = ((log_p - log_target(x, s)) * np.exp(log_normal(u)) * du).sum(-1)
    values = np.concatenate([values[1:2], values])  # the mirror image beyond mu = 0
    values = np.pad(values, ((0, 1), (1, 1)), constant_values=np.inf)
    inner = values[1:-1, 1:-1]
    lower = [
        inner < np.roll(values, (i, j), (0, 1))[1:-1, 1:-1]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        if (i, j) != (0, 0)
    ]
    assert np.all(lower, axis=0).sum() == count
    found = [r for r in fits if r["separation"] == s and r["direction"] == REVERSE]
    assert len(found) == count
    assert found[0]["nats"] == pytest.approx(inner.min(), abs=4e-3)


def test_forward_matches_mean_and_variance(fits):
    own = [row for row in fits if row["direction"] == FORWARD]
    assert [row["separation"] for row in own] == list(demo_kl.SEPARATIONS)
    for row in own:
        assert row["mu"] == pytest.approx(0, abs=1e-6)
        assert row["sigma"] == pytest.approx(math.hypot(1, row["separation"]), rel=1e-7)
        assert row["minimum"] == "global"


def test_the_known_fits(fits):
    """To the digits that are printed."""
    expected = {
        (2.0, REVERSE, "global"): ("0.000", "2.047", "0.2265"),
        (3.0, FORWARD, "global"): ("0.000", "3.162", "0.4620"),
        (3.0, REVERSE, "global"): ("2.984", "1.023", "0.6888"),
        (3.0, REVERSE, "local"): ("0.000", "2.744", "0.8406"),
    }
    rows = {(r["separation"], r["direction"], r["minimum"]): r for r in fits}
    assert (2.0, REVERSE, "local") not in rows
    for key, printed in expected.items():
        row = rows[key]
        assert (f"{row['mu']:.3f}", f"{row['sigma']:.3f}", f"{row['nats']:.4f}") == printed


def test_where_the_descent_ends_depends_on_its_start(fits):
    rows = {(r["separation"], r["minimum"]): r for r in fits if r["direction"] == REVERSE}
    assert rows[3.0, "global"]["starts"] == "mode"
    assert rows[3.0, "local"]["starts"] == "between, wide"
    assert rows[2.5, "global"]["mu"] == pytest.approx(0, abs=1e-6)
    assert rows[2.0, "global"]["starts"] == "between, wide, mode"


def test_the_worked_numbers():
    rows = {(r["quantity"], r.get("first"), r.get("second")): r for r in demo_kl.number_table()}
    fair, biased, forecast = "[0.5, 0.5]", "[0.9, 0.1]", "[0.8, 0.2]"
    bits = {
        ("H(p)", fair, None): 1,
        ("H(p)", biased, None): 0.468995593589281,
        ("H(p, q)", fair, biased): 1.736965594166206,
        ("H(p, q)", biased, fair): 1,
        ("D(p ‖ q)", fair, biased): 0.736965594166206,
        ("D(p ‖ q)", biased, fair): 0.531004406410719,
        ("D(p ‖ q)", biased, forecast): 0.0529325012980811,
        ("D(p ‖ q) + D(q ‖ p)", fair, biased): 1.267970000576925,
        ("JSD(p, q)", fair, biased): 0.146793102436052,
    }
    assert rows.keys() == bits.keys()
    for key, value in bits.items():
        assert rows[key]["bits"] == pytest.approx(value, abs=1e-14)
        assert rows[key]["nats"] == pytest.approx(value * math.log(2), abs=1e-14)
        assert rows[key]["hartleys"] == pytest.approx(value * math.log10(2), abs=1e-14)


def test_disjoint_supports():
    places = np.arange(12)
    p = np.where(places < 4, 0.25, 0)
    for row in demo_kl.shift_table():
        q = np.roll(p, row["shift"])
        kl = rel_entr(p, q).sum()
        assert row["kl"] == ("infinite" if np.isinf(kl) else f"{kl:.4f}")
        assert row["js"] == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-12)
        expected = wasserstein_distance(places, places, p, q)
        assert row["wasserstein"] == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["shared.experiments.kl.demo", "--out", str(out)])
        demo_kl.main()
    return out


def test_the_program_leaves_tables_and_a_picture(run):
    assert {p.name for p in run.iterdir()} == set(
        """
        demo.json demo.png demo_edges.json demo_numbers.json demo_shifts.json
    """.split()
    )
    assert (run / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "demo.png").stat().st_size > 20_000


@pytest.mark.parametrize("name", ["demo.json", "demo_numbers.json", "demo_shifts.json"])
def test_the_committed_tables_are_what_the_program_writes(run, name):
    fresh = json.loads((run / name).read_text())
    committed = json.loads((ROOT / "shared" / "kl" / "results" / name).read_text())
    assert markdown(fresh) == markdown(committed)
    assert committed["environment"]["command"] == (
        "python -m shared.experiments.kl.demo --out shared/kl/results"
    )


def test_an_unknown_option_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["shared.experiments.kl.demo", "--uot", "x"])
    with pytest.raises(UserError, match=r"--uot"):
        demo_kl.main()


def test_the_edges_are_right_here_and_wrong_in_torch():
    """When torch repairs one of them, this says so."""
    for row in demo_kl_edges.edge_table():
        assert row["ours"] == row["truth"], row
        assert row["torch"] != row["truth"], row
