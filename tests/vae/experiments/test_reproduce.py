"""The reproduction's commands are valid; committed records give the committed tables."""

from pathlib import Path

import pytest

from shared import cli
from vae.config import PRESETS
from vae.experiments import reproduce
from vae.experiments.reproduce import BETAS, REPRODUCTION, SEEDS, VIB_BETAS, VIB_NETWORKS


def test_every_command_is_valid():
    for name, run in REPRODUCTION.runs.items():
        preset, config = cli.read_config(PRESETS, run.program, run.arguments.split())
        assert name.startswith(preset) or preset == "default"
        assert config == cli.check(config)
    count = len(SEEDS) + len(BETAS) + len(VIB_BETAS) * len(VIB_NETWORKS) + 1
    assert len(REPRODUCTION.runs) == count
    assert not REPRODUCTION.chosen(reproduce.Options(missing=True))  # all have a record


def test_the_records_give_the_committed_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    committed = reproduce.RESULTS
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    reproduce.headline()
    reproduce.sweeps()
    for name in ("headline.json", "beta_sweep.json", "vib_sweep.json"):
        assert (tmp_path / name).read_bytes() == (committed / name).read_bytes()
    for name in ("rate_distortion.png", "vib.png"):
        assert (tmp_path / name).stat().st_size > 10_000
