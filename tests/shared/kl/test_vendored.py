"""The folder shared/kl is whole: copied under another name, it works without the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import shared.kl

PROGRAM = """
import sys
import torch
import my_divergences as kl
from my_divergences.gaussian.diagonal import kl_normal

p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
print(f"{kl.kl_from_probs(p, q, unit='bits').item():.4f}")
hidden = torch.ones(2, 3)
print(kl.fused_linear_kl(hidden, torch.eye(3), hidden, torch.eye(3)).tolist())
normal = torch.distributions.Normal
print(kl.kl_divergence(normal(0.0, 1.0), normal(1.0, 1.0)).item())
assert kl_normal is kl.kl_normal
print(sorted(name for name in sys.modules if name.split(".")[0] in ("shared", "tests")))
print(" ".join(kl.__all__))
"""


def test_it_works_alone_under_another_name(tmp_path: Path) -> None:
    folder = Path(shared.kl.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.md")
    shutil.copytree(folder, tmp_path / "my_divergences", ignore=ignored)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    *lines, names = run.stdout.splitlines()
    assert lines == ["0.7370", "[0.0, 0.0]", "0.5", "[]"]
    assert names.split() == shared.kl.__all__
